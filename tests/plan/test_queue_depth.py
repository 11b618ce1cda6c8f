"""The trial of a disk, and what is concluded from it."""

import os
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest

from coterie.plan import queue_depth
from coterie.plan.disk import supports_direct_io
from coterie.plan.queue_depth import DEPTHS, PARTS, Round, choose, tune_reads
from coterie.records import LocalFile
from coterie.spec import Extent

RECORD = 64 * 1024


def a_round(many: dict[int, float], lone: dict[int, float] | None = None) -> Round:
    one: Round = {(depth, 1, False): speed for depth, speed in many.items()}
    return one | {(parts, parts, True): speed for parts, speed in (lone or {1: 1.0, 2: 1.0, 4: 1.0}).items()}


def chosen(*rounds: Round) -> tuple[int, int]:
    tuning = choose(RECORD, rounds)
    return tuning.at_once, tuning.parts


def places(directory: Path, number: int, record: int = RECORD) -> list[Extent]:
    path = directory / "records"
    path.write_bytes(os.urandom(number * record))
    return [Extent(source=LocalFile(path), offset=place * record, nbytes=record) for place in range(number)]


def open_files() -> int:
    return psutil.Process().num_fds()


class TestChoice:
    def test_a_disk_with_a_queue_gets_the_least_that_fills_it(self) -> None:
        assert chosen(*[a_round({1: 1.0, 2: 1.8, 4: 2.5, 8: 2.55})] * 3) == (4, 1)
        assert chosen(*[a_round({1: 1.0, 2: 1.8, 4: 2.5, 8: 3.0})] * 3) == (8, 1)

    def test_two_where_the_number_makes_no_difference_or_noise_alone(self) -> None:
        assert chosen(*[a_round({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})] * 3) == (2, 1)
        assert chosen(a_round({1: 1, 2: 1, 4: 3, 8: 1}), *[a_round({1: 1, 2: 1, 4: 0.9, 8: 1})] * 2) == (2, 1)
        # Faster in the median, but not each time.
        assert chosen(*[a_round({1: 1, 2: 1, 4: 2, 8: 1})] * 2, a_round({1: 1, 2: 1, 4: 0.9, 8: 1})) == (2, 1)

    def test_one_only_where_more_do_harm(self) -> None:
        assert chosen(*[a_round({1: 1.08, 2: 1.0, 4: 0.8, 8: 0.8})] * 3) == (2, 1)
        assert chosen(*[a_round({1: 1.2, 2: 1.0, 4: 0.8, 8: 0.8})] * 3) == (1, 1)
        # A hard disk, where four happen to be better than two and one is better than all.
        assert chosen(*[a_round({1: 2.0, 2: 0.8, 4: 1.2, 8: 0.7})] * 3) == (1, 1)

    def test_a_record_is_divided_where_that_makes_a_lone_one_faster(self) -> None:
        many = {1: 1.0, 2: 1.8, 4: 2.5, 8: 2.5}
        assert chosen(*[a_round(many, {1: 1.0, 2: 1.5, 4: 2.0})] * 3) == (4, 4)
        assert chosen(*[a_round(many, {1: 1.0, 2: 1.5, 4: 1.52})] * 3) == (4, 2)

    def test_in_no_more_parts_than_reads_at_once(self) -> None:
        flat = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
        assert chosen(*[a_round(flat, {1: 1.0, 2: 1.02, 4: 2.0})] * 3) == (2, 1)

    def test_few_lanes_do(self) -> None:
        assert chosen(*[a_round({1: 1.0, 2: 1.8}, {1: 1.0, 2: 1.8})] * 3) == (2, 2)

    def test_parts_are_aligned_and_cover_the_record(self) -> None:
        tuning = choose(RECORD, [a_round({1: 1, 2: 2, 4: 4, 8: 4}, {1: 1, 2: 2, 4: 4})] * 3)
        assert tuning.parts == 4
        for record in (RECORD, RECORD + 4096, 3 * 4096):
            size = tuning.read_nbytes(record)
            assert size is not None
            assert size % 4096 == 0
            assert -(-record // size) <= 4
        assert choose(RECORD, [a_round({1: 1, 2: 2, 4: 4, 8: 4})]).read_nbytes(RECORD) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond between two looks at the clock, however busy the machine is."""
    monkeypatch.setattr(queue_depth.time, "perf_counter", partial(next, count(step=1e-3)))


@pytest.fixture
def direct(tmp_path: Path) -> None:
    """Only where there are direct reads."""
    if not supports_direct_io(tmp_path):
        pytest.skip("this filesystem has no O_DIRECT")


class TestTrial:
    @pytest.mark.usefixtures("clock", "direct")
    def test_every_way_is_measured_and_every_file_closed(self, tmp_path: Path) -> None:
        before = open_files()
        tuning = tune_reads(places(tmp_path, 32), memory=2**30, seconds=0.05)
        assert tuning is not None
        assert {(each.at_once, each.parts, each.lone) for each in tuning.trials} == {
            *((depth, 1, False) for depth in DEPTHS),
            *((parts, parts, True) for parts in PARTS),
        }
        assert all(each.bytes_per_second > 0 for each in tuning.trials)
        assert tuning.at_once in DEPTHS
        assert tuning.record == RECORD
        assert open_files() == before

    @pytest.mark.usefixtures("direct")
    def test_every_byte_asked_for_is_read_in_the_right_number_of_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[tuple[int, int]] = []
        real = os.preadv

        def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            reads.append((offset, len(buffers[0])))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        with queue_depth._Lanes(places(tmp_path, 16), 4) as lanes:
            lanes.many(16, 3)
            assert sorted(reads) == [(number * RECORD, RECORD) for number in range(16)]
            reads.clear()
            lanes.one_by_one(16, 4)
            assert sorted(reads) == [(number * RECORD // 4, RECORD // 4) for number in range(64)]

    @pytest.mark.usefixtures("clock", "direct")
    def test_memory_bounds_the_buffers(self, tmp_path: Path) -> None:
        tuning = tune_reads(places(tmp_path, 16), memory=3 * RECORD, seconds=0.05)
        assert tuning is not None
        assert max(each.at_once for each in tuning.trials) == 2
        assert tune_reads(places(tmp_path, 16), memory=RECORD, seconds=0.05) is None

    def test_a_disk_too_slow_for_one_round_gives_no_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = iter(range(0, 10**6, 2))
        monkeypatch.setattr(queue_depth.time, "perf_counter", lambda: next(now))
        assert tune_reads(places(tmp_path, 16), memory=2**30, seconds=1.0) is None

    @pytest.mark.parametrize("why", ["few", "unaligned", "no direct reads"])
    def test_where_it_cannot_be_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
        extents = places(tmp_path, 15 if why == "few" else 16)
        if why == "unaligned":
            extents = [Extent(source=each.source, offset=each.offset + 1, nbytes=each.nbytes) for each in extents]
        if why == "no direct reads":
            monkeypatch.setattr(queue_depth, "HAS_DIRECT", False)
        assert tune_reads(extents, memory=2**30) is None

    def test_a_file_that_is_gone_is_an_error(self, tmp_path: Path) -> None:
        extents = places(tmp_path, 16)
        extents[0].source.path.unlink()
        with pytest.raises(FileNotFoundError):
            tune_reads(extents, memory=2**30)
