"""Merging is a join: any order, any number of times, cut off anywhere."""

import itertools
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from coterie.errors import ProfileIdentityError, ProfileNotFoundError, UsageError
from coterie.profiles import (
    BankCounts,
    Group,
    GroupCounts,
    Mark,
    Profile,
    ProfileDatabase,
    RunFacts,
    SegmentFacts,
    TokenCounts,
    Vocabulary,
    join_segments,
    merge,
    rank_experts,
    sync,
)
from coterie.profiles.facts import join_marks, join_tokens
from coterie.profiles.packing import segment_digest
from profiles.conftest import write_profile
from profiles.contents import contents
from profiles.synthetic import Router, run_facts, shapes

BANKS = shapes(2, 3, 2)
GROUPS = [Group("text", "code", "prompt"), Group("text", "law", "generated"), Group("audio", "talk", "prompt")]
UUIDS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(3)]


@st.composite
def group_counts(draw: st.DrawFn, group: Group) -> GroupCounts:
    whole = st.lists(st.integers(0, 4), min_size=3, max_size=3).map(lambda values: np.array(values, np.int64))
    return GroupCounts(
        group=group,
        tokens=draw(st.integers(10, 20)),
        entropy_sum=draw(st.integers(0, 9)) / 4,
        entropy_squares=draw(st.integers(0, 9)) / 4,
        activations=draw(whole),
        gate_mass=draw(whole) / 2,
        reap_sum=draw(whole) / 2,
        reap_counts=draw(whole),
    )


@st.composite
def segment(draw: st.DrawFn, number: int) -> SegmentFacts:
    banks = []
    for shape in BANKS:
        groups = draw(st.lists(st.sampled_from(GROUPS), unique=True, max_size=3))
        pairs = draw(st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3))
        if groups:
            counts = tuple(draw(group_counts(group)) for group in sorted(groups))
            packed = None if pairs is None else np.array(pairs, np.int64)
            banks.append(BankCounts(bank=shape.bank, groups=counts, pairs=packed))
    return SegmentFacts(number=number, banks=tuple(banks))


@st.composite
def tokens(draw: st.DrawFn, experts: int) -> TokenCounts:
    entries = sorted(draw(st.sets(st.tuples(st.integers(0, experts - 1), st.integers(0, 5)), max_size=4)))
    return TokenCounts(
        segments=draw(st.integers(0, 3)),
        experts=np.array([e for e, _ in entries], np.uint16),
        tokens=np.array([t for _, t in entries], np.uint32),
        counts=np.array([draw(st.integers(1, 9)) for _ in entries], np.int64),
        dropped=np.zeros(experts, np.int64),
    )


@st.composite
def facts(draw: st.DrawFn) -> dict[str, tuple[list[SegmentFacts], Vocabulary, list[Mark]]]:
    """What one profile knows of some of three runs."""
    found = {}
    for uuid in draw(st.lists(st.sampled_from(UUIDS), unique=True, max_size=2)):
        numbers = draw(st.lists(st.integers(0, 2), unique=True, max_size=2))
        banks = {shape.bank: draw(tokens(3)) for shape in BANKS if draw(st.booleans())}
        totals = {("text", "mlp"): draw(tokens(1))} if draw(st.booleans()) else {}
        marks = [Mark(key, draw(st.integers(0, 5)), draw(st.booleans())) for key in "ab" if draw(st.booleans())]
        found[uuid] = (
            [draw(segment(number)) for number in sorted(numbers)],
            Vocabulary(banks=banks, totals=totals),
            marks,
        )
    return found


def filled(where: str, known: dict[str, tuple[list[SegmentFacts], Vocabulary, list[Mark]]]) -> ProfileDatabase:
    database = ProfileDatabase(where, create=True)
    for uuid, (segments, vocabulary, marks) in known.items():
        database.add_run(RunFacts(**vars_of(run_facts(BANKS)) | {"uuid": uuid, "started": "2026-01-01T00:00:00Z"}))
        for one in segments:
            database.write_segment(uuid, one)
        database.write_vocabulary(uuid, vocabulary)
        database.write_marks(uuid, marks)
    return database


def vars_of(run: RunFacts) -> dict[str, object]:
    return {name: getattr(run, name) for name in RunFacts.__dataclass_fields__}


@given(segment(0), segment(0), segment(0))
def test_joining_segments_is_a_semilattice(a, b, c) -> None:
    def same(x: SegmentFacts, y: SegmentFacts) -> bool:
        return segment_digest(x) == segment_digest(y)

    assert same(join_segments(a, b), join_segments(b, a))
    assert same(join_segments(a, join_segments(b, c)), join_segments(join_segments(a, b), c))
    assert same(join_segments(a, a), a)
    joined = join_segments(a, b)
    for bank in a.banks:
        other = next(counts for counts in joined.banks if counts.bank == bank.bank)
        for counts in bank.groups:
            larger = next(found for found in other.groups if found.group == counts.group)
            assert (larger.activations >= counts.activations).all()


@given(tokens(3), tokens(3), tokens(3))
def test_joining_tokens_takes_the_later_state(a, b, c) -> None:
    def key(state: TokenCounts) -> tuple[object, ...]:
        return (
            state.segments,
            *(getattr(state, name).tobytes() for name in ("counts", "tokens", "experts", "dropped")),
        )

    assert key(join_tokens(a, b)) == key(join_tokens(b, a))
    assert key(join_tokens(a, join_tokens(b, c))) == key(join_tokens(join_tokens(a, b), c))
    assert join_tokens(a, b).segments == max(a.segments, b.segments)


def test_joining_marks_takes_what_is_further_on() -> None:
    a, b = Mark("x", 3, False), Mark("x", 2, True)
    assert join_marks(a, b) == join_marks(b, a) == Mark("x", 3, True)


class CutOff(Exception):
    """Whatever ends a merge in its middle."""


class Fragile(ProfileDatabase):
    """A profile whose process dies after so many transactions."""

    left = 10**9

    def writing(self):
        if self.left == 0:
            raise CutOff
        self.left -= 1
        return super().writing()


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """An empty profile to copy, which is quicker than making one."""
    path = tmp_path_factory.mktemp("empty") / "profile.db"
    ProfileDatabase(path, create=True).close()
    return path


MERGES = given(facts(), facts(), facts(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
GENERATED = [Phase.explicit, Phase.generate]


@settings(max_examples=5, phases=GENERATED)
@MERGES
def test_profiles_merge_in_any_order_and_after_any_interruption(tmp_path_factory, empty, a, b, c, kills) -> None:
    merge_in_any_order(tmp_path_factory, empty, a, b, c, kills)


@pytest.mark.slow
@settings(max_examples=60, phases=GENERATED)
@MERGES
def test_many_profiles_merge_in_any_order(tmp_path_factory, empty, a, b, c, kills) -> None:
    merge_in_any_order(tmp_path_factory, empty, a, b, c, kills)


def merge_in_any_order(tmp_path_factory, empty, a, b, c, kills) -> None:
    folder = tmp_path_factory.mktemp("merge")
    for name in ("a", "b", "c", "order0", "order3", "order4", "bc", "a-bc", "fragile"):
        shutil.copy(empty, folder / name)
    sources = [filled(str(folder / name), known) for name, known in (("a", a), ("b", b), ("c", c))]
    results = []
    for number, order in enumerate(itertools.permutations(sources)):
        if number not in (0, 3, 4):
            continue
        with ProfileDatabase(folder / f"order{number}", create=True) as into:
            merge(order, into)
            results.append(contents(into))
            merge(order, into)
            assert contents(into) == results[-1]
    # (a ∪ b) ∪ c, and a ∪ (b ∪ c)
    with ProfileDatabase(folder / "bc", create=True) as bc, ProfileDatabase(folder / "a-bc", create=True) as into:
        merge(sources[1:], bc)
        merge([sources[0], bc], into)
        results.append(contents(into))
    # Killed after some transactions, and begun again, until it comes through.
    with Fragile(folder / "fragile", create=True) as into:
        for kept in [*kills, 10**9]:
            into.left = kept
            with suppress(CutOff):
                merge(sources, into)
        results.append(contents(into))
    assert all(result == results[0] for result in results)
    for source in sources:
        source.close()


def test_a_merge_may_be_killed_at_every_transaction(tmp_path, empty) -> None:
    router = Router()
    write_profile(tmp_path / "a.db", router, {"code": 4}, seed=1)
    write_profile(tmp_path / "b.db", router, {"law": 4}, seed=2)
    with ProfileDatabase(tmp_path / "a.db") as a, ProfileDatabase(tmp_path / "b.db") as b:
        with ProfileDatabase(tmp_path / "whole.db", create=True) as into:
            merge([a, b], into)
            whole = contents(into)
        for kept in range(8):
            shutil.copy(empty, tmp_path / f"{kept}.db")
            with Fragile(tmp_path / f"{kept}.db") as into:
                into.left = kept
                with pytest.raises(CutOff):
                    merge([a, b], into)
                assert contents(into) != whole
                into.left = 10**9
                merge([b, a], into)
                assert contents(into) == whole


def test_a_half_finished_merge_holds_whole_segments(tmp_path) -> None:
    run = write_profile(tmp_path / "a.db", Router(), {"code": 10})
    with ProfileDatabase(tmp_path / "a.db") as source, Fragile(tmp_path / "b.db", create=True) as into:
        into.left = 3
        with pytest.raises(CutOff):
            merge([source], into)
        assert sorted(into.digests(run.uuid)) == [0, 1]
        assert into.digests(run.uuid) == dict(itertools.islice(source.digests(run.uuid).items(), 2))


def test_merging_adds_up_different_runs(tmp_path) -> None:
    router = Router(planted={(0, "code"): (3,)})
    write_profile(tmp_path / "a.db", router, {"code": 6, "law": 6}, seed=1)
    write_profile(tmp_path / "b.db", router, {"code": 6, "law": 6}, seed=2)
    with ProfileDatabase(tmp_path / "a.db") as a, ProfileDatabase(tmp_path / "b.db") as b:
        alone = [Profile.read(a), Profile.read(b)]
        (report,) = merge([b], a)
        assert (report.runs, report.segments, report.same, report.tokens) == (1, 6, 0, 12 * 64)
        both = Profile.read(a)
    assert both.tokens == sum(profile.tokens for profile in alone)
    key = both.runs[0].banks[0].bank
    sums = sum(profile.banks[key].activations.sum(axis=0) for profile in alone)
    assert both.banks[key].activations.sum(axis=0).tolist() == sums.tolist()
    # Three segments of each run are too few by themselves, together they are enough.
    assert [rank_experts(profile, domain="code").specialists for profile in (*alone, both)] == [0, 0, 1]


def test_different_models_are_kept_apart(tmp_path) -> None:
    write_profile(tmp_path / "a.db", Router(), {"code": 2})
    other = run_facts(identity="f" * 32, model="other")
    write_profile(tmp_path / "b.db", Router(), {"code": 2}, run=other)
    with ProfileDatabase(tmp_path / "a.db") as a, ProfileDatabase(tmp_path / "b.db") as b:
        with pytest.raises(ProfileIdentityError, match=r"0123456789abcdef.*\(tiny\).*ffffffff.*\(other\)") as caught:
            merge([b], a)
        assert {caught.value.expected, caught.value.got} == {other.identity, a.runs()[0].identity}
        assert len(a.runs()) == 1
        merge([b], a, several_models=True)
        assert sorted(a.identities().values()) == ["other", "tiny"]
        with pytest.raises(UsageError, match="is about several models"):
            Profile.read(a)
        assert Profile.read(a, "ffff").model == "other"
        with pytest.raises(ProfileIdentityError, match=r"is about another model.*not about abcd"):
            Profile.read(a, "abcd")


def test_synchronising_goes_both_ways_and_only_for_one_model(tmp_path, postgresql) -> None:
    here = write_profile(tmp_path / "a.db", Router(), {"code": 4}, seed=1)
    there = write_profile(postgresql, Router(), {"law": 4}, seed=2)
    write_profile(postgresql, Router(), {"law": 4}, run=run_facts(identity="f" * 32, model="other"))
    with ProfileDatabase(tmp_path / "a.db") as local, ProfileDatabase(postgresql) as remote:
        pulled, pushed = sync(local, remote)
        assert (pulled.segments, pushed.segments, pushed.same) == (2, 2, 2)
        known = contents(local)
        assert set(known) == {here.uuid, there.uuid}
        assert {uuid: contents(remote)[uuid] for uuid in known} == known
        assert [report.segments for report in sync(local, remote)] == [0, 0]
        # A growing run brings its new segments only.
        fresh = write_profile(tmp_path / "b.db", Router(), {"code": 6}, run=here, seed=1)
        assert fresh is here
        with ProfileDatabase(tmp_path / "b.db") as grown:
            assert [report.segments for report in sync(grown, remote)] == [2, 1]


def test_synchronising_needs_a_model_that_is_known(tmp_path) -> None:
    with ProfileDatabase(tmp_path / "a.db", create=True) as a, ProfileDatabase(tmp_path / "b.db", create=True) as b:
        with pytest.raises(ProfileNotFoundError, match="Nothing was recorded"):
            sync(a, b)
        write_profile(tmp_path / "a.db", Router(), {"code": 2})
        with pytest.raises(ProfileNotFoundError, match=r"Neither .* has runs of the model 123"):
            sync(a, b, identity="123")
        assert [report.segments for report in sync(a, b, pull=False)] == [1]
        assert contents(b) == contents(a)


def test_a_run_cannot_be_of_two_models(tmp_path) -> None:
    run = write_profile(tmp_path / "a.db", Router(), {"code": 2})
    changed = RunFacts(**vars_of(run) | {"identity": "e" * 32})
    with (
        ProfileDatabase(tmp_path / "a.db") as database,
        pytest.raises(ProfileIdentityError, match="One of the two copies is damaged"),
    ):
        database.add_run(changed)
