import json

import numpy as np
import pytest

from coterie.cli import commands
from coterie.eviction import POLICY_NAMES


@pytest.fixture
def trace(tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (60, 3, 1)) + np.array([0, 8])
    np.savez(tmp_path / "t.npz", expert_ids=ids.astype(np.uint16), sequence_lengths=[60], num_experts=16, model="tiny")
    return str(tmp_path / "t.npz")


def test_table_shows_every_policy_the_optimum_and_the_knee(coterie, trace):
    outcome = coterie("replay", trace, "--capacity", "25%,50%", "--expert-bytes", "1KiB")
    assert outcome.code == 0
    for text in (
        *POLICY_NAMES,
        "belady",
        "compulsory bound",
        "Knee of lru",
        "tiny, 60 tokens",
        "25.0%",
        "KiB",
        "layer",
    ):
        assert text in outcome.out


def test_json_of_chosen_policies(coterie, trace):
    outcome = coterie("replay", trace, trace, "--policy", "markov,lru", "--scope", "global", "--json")
    first, second = json.loads(outcome.out)["replays"]
    assert first == second
    assert [row["policy"] for row in first["rows"]] == ["markov", "lru", "belady"] * 3
    assert [row["capacity"] for row in first["rows"][::3]] == [6, 12, 24]
    assert first["rows"][0]["bytes_per_token"] is None


def test_capacity_in_bytes(coterie, trace):
    outcome = coterie("replay", trace, "--capacity", "12KiB", "--expert-bytes", "1KiB", "--scope", "global", "--json")
    assert {row["capacity"] for row in json.loads(outcome.out)["replays"][0]["rows"]} == {12}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--capacity", "12KiB"), 2, "--expert-bytes SIZE"),
        (("--capacity", "120%"), 2, "not a share"),
        (("--capacity", "0.1%"), 2, "not hold a single expert"),
        (("--capacity", "4%"), 2, "do not divide among 3 layers"),
        (("--policy", "lruu"), 2, "Did you mean 'lru'?"),
    ],
)
def test_wrong_usage(coterie, trace, options, code, message):
    outcome = coterie("replay", trace, *options)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_a_damaged_trace(coterie, tmp_path):
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04")
    outcome = coterie("replay", str(tmp_path / "t.npz"))
    assert outcome.code == 1
    assert "damaged" in outcome.err


def test_ctrl_c_ends_quietly(coterie, trace, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.eviction.simulate", interrupted)
    monkeypatch.setattr("coterie.eviction.replay", interrupted)
    outcome = coterie("replay", trace)
    assert (outcome.code, outcome.out) == (130, "")
    assert "Interrupted" in outcome.err


def test_the_trace_that_generate_records(coterie, tmp_path):
    file = tmp_path / "t.npz"
    recording = coterie("generate", "bundled", "a", "-n", "6", "--expert-memory", "50%", "--record-trace", str(file))
    assert recording.code == 0
    assert coterie("replay", str(file)).code == 0
    assert "replay" in [entry.name for entry in commands.COMMANDS]


@pytest.fixture
def profile(trace, tmp_path):
    """What the trace's own routing teaches."""
    from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts
    from coterie.spec import BankKey

    ids = np.load(trace)["expert_ids"]
    banks = tuple(BankShape(bank=BankKey("text", layer, "mlp"), experts=16, top_k=2) for layer in range(3))
    run = RunFacts(identity="0" * 32, model="tiny", model_class="Tiny", tool_version="0", banks=banks)
    path = tmp_path / "p.db"
    with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
        group = recording.group("text", "code", "prompt")
        for layer, shape in enumerate(banks):
            recording.add(shape.bank, ids[:, layer], np.ones((60, 2), np.float32), None, group)
    return str(path)


def test_trust_is_replayed_where_a_profile_is_given(coterie, trace, profile):
    outcome = coterie("replay", trace, "--profile", profile, "--scope", "global", "--json")
    rows = json.loads(outcome.out)["replays"][0]["rows"]
    assert [row["policy"] for row in rows[:6]] == [*POLICY_NAMES, "trust", "belady"]
    outcome = coterie("replay", trace, "--profile", profile, "--domain", "coed")
    assert outcome.code != 0
    assert "code" in outcome.err


def test_what_a_profile_is_needed_for_is_said(coterie, trace, tmp_path, profile):
    for arguments in (("--policy", "trust"), ("--domain", "code")):
        outcome = coterie("replay", trace, *arguments)
        assert outcome.code != 0
        assert "--profile" in outcome.err
    ids = np.zeros((4, 5, 1), np.uint16)
    np.savez(tmp_path / "deep.npz", expert_ids=ids, sequence_lengths=[4], num_experts=16, model="other")
    outcome = coterie("replay", str(tmp_path / "deep.npz"), "--profile", profile)
    assert outcome.code != 0
    assert "another model" in outcome.err
