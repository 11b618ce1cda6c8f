"""Halves and stretches have all tokens once; intervals cover, and what differs between halves is not called alike."""

import numpy as np
import pytest

from coterie.profiles import Profile, Stretches, profile_halves
from coterie.profiles.halves import STRETCHES
from profiles.conftest import write_profile
from profiles.synthetic import Router


def made(path, documents=None, **options) -> Profile:
    write_profile(path, Router(**options), documents or {"code": 40, "law": 21, "prose": 3}, documents_per_segment=1)
    return Profile.open(path)


def share_of_zero(profile: Profile) -> float | None:
    tables = list(profile.tables())
    return float(np.mean([table.activations[:, 0].sum() / table.tokens.sum() for table in tables])) if tables else None


def test_every_token_is_in_one_half_and_in_one_stretch(tmp_path):
    profile = made(tmp_path / "p.db")
    first, second = profile_halves(profile)
    assert (first.domains["code"], second.domains["code"]) == (20 * 64, 20 * 64)
    assert {abs(first.domains[d] - second.domains[d]) for d in ("law", "prose")} == {64}
    stretches = Stretches(profile)
    for key, table in profile.banks.items():
        together = stretches.profile.banks[key]
        assert set(together.segments.tolist()) <= set(range(STRETCHES))
        for name in ("activations", "gate_mass", "reap_sum", "entropy_sum", "tokens"):
            whole = getattr(table, name).sum(axis=0)
            assert getattr(together, name).sum(axis=0) == pytest.approx(whole)
            assert sum(getattr(half.banks[key], name).sum(axis=0) for half in (first, second)) == pytest.approx(whole)
    for half, other in zip(stretches.halves, (first, second), strict=True):
        assert abs(half.tokens - other.tokens) <= 3 * 64


def test_a_group_of_one_segment_is_in_one_half(tmp_path):
    profile = made(tmp_path / "p.db", {"code": 8, "law": 1})
    assert [dict(half.domains).get("law") for half in profile_halves(profile)] == [0, 64]


def test_intervals_cover_what_is_true(tmp_path):
    truth, covered, runs = 2 / 8, 0, 12
    for seed in range(runs):
        path = tmp_path / f"{seed}.db"
        write_profile(path, Router(burst=0.5), {"code": 32}, documents_per_segment=1, tokens=16, seed=seed)
        found = Stretches(Profile.open(path)).estimate(share_of_zero)
        assert found.low is not None
        assert found.low < found.value < found.high
        covered += found.low <= truth <= found.high
    # Of 12 intervals of 95 % fewer than 8 cover less than once in a thousand times.
    assert covered >= 8


def test_halves_that_differ_are_not_alike(tmp_path):
    write_profile(tmp_path / "p.db", Router(), {"code": 32}, documents_per_segment=1)
    same = Stretches(Profile.open(tmp_path / "p.db")).estimate(share_of_zero)
    assert same.alike
    run = Router(planted={(layer, "code"): (0,) for layer in range(2)})
    # Two runs are told apart by their numbers alone, so each is a half by itself where it is read as one group.
    write_profile(tmp_path / "q.db", run, {"code": 32}, documents_per_segment=1)
    write_profile(tmp_path / "q.db", Router(), {"code": 32}, documents_per_segment=1)
    other = Stretches(Profile.open(tmp_path / "q.db")).estimate(share_of_zero)
    assert abs(other.first - other.second) == pytest.approx(0.75, abs=0.02)
    assert not other.alike


def test_too_few_segments_have_no_interval(tmp_path):
    found = Stretches(made(tmp_path / "p.db", {"code": 2})).estimate(share_of_zero)
    assert found.value is not None
    assert (found.low, found.high, found.alike) == (None, None, None)
