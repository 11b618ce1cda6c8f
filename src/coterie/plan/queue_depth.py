"""How many reads at once a disk likes, and whether it likes a record in one read: a short trial with real records.

A disk behind a queue (NVMe, RAID, network) gives its best only with several reads outstanding; one that is really a
file on a host's disk, or a hard disk, can give less with many than with one. No table of devices knows that.
"""

from __future__ import annotations

import mmap
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial

from coterie.plan.huge_pages import HUGE_PAGE
from coterie.records.files import HAS_DIRECT
from coterie.spec import RECORD_ALIGNMENT, ByteSource, Extent, OpenBytes, round_up

DEPTHS = (1, 2, 4, 8)
PARTS = (1, 2, 4)
LEAST_RECORDS = 16
"""Below this many records there is too little to draw from."""

_BATCH = 16 * 2**20
_MOST_RECORDS = 256
_MOST_FILES = 16
_WORTH = 1.05
"""More reads at once, or more parts, must be faster by this factor, and in every round: fewer leave the disk to others
and answer sooner, and a trial is short."""
_WORTH_ALONE = 1.1
"""By how much one read at a time must be faster than any other number. The trial has the processor to itself; beside a
model that computes, a reading thread waits for its core between reads, and a second read outstanding is what the disk
has to do meanwhile."""
_PATIENCE = 3
_LEAST_ROUNDS = 3

Way = tuple[int, int, bool]
"""Reads at once, reads that a record is divided into, whether only one record is outstanding."""
Round = dict[Way, float]
"""Bytes per second of every way, measured one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way of reading, measured.

    Attributes:
        at_once: Reads outstanding.
        parts: Reads that a record is divided into; above one, only one record is outstanding.
        lone: Whether only one record is outstanding.
        bytes_per_second: Median over rounds.
    """

    at_once: int
    parts: int
    lone: bool
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTuning:
    """How records are best read from a disk.

    Attributes:
        at_once: Reads outstanding at most.
        parts: Reads that a record is divided into.
        record: Bytes of the records that this was found with.
        trials: What it was chosen from.
    """

    at_once: int
    parts: int
    record: int
    trials: tuple[Trial, ...] = ()

    def read_nbytes(self, record: int) -> int | None:
        """The longest single read for records of that many bytes; None if they are read whole."""
        return None if self.parts == 1 else round_up(-(-record // self.parts), RECORD_ALIGNMENT)


def tune_reads(extents: Sequence[Extent], *, memory: int, seconds: float = 1.0) -> ReadTuning | None:
    """Reads records past the page cache in every way, in turn, and chooses.

    Args:
        extents: Whole records of about one size, aligned for direct reads; of several sizes the most frequent is taken.
        memory: Bytes that may be taken for buffers meanwhile.
        seconds: About how long it may take; on a slow disk up to three times that.

    Returns:
        The choice, or None where it cannot be made: no direct reads, too few records, or a disk so slow that not one
        round was completed in time.

    Raises:
        OSError: If a file cannot be read.
    """
    usable = _usable(extents)
    if not HAS_DIRECT or len(usable) < LEAST_RECORDS:
        return None
    record = usable[0].nbytes
    lanes = min(DEPTHS[-1], memory // record)
    if lanes < 2:
        return None
    with _Lanes(usable, lanes) as reading:
        rounds = _rounds(reading, record, seconds)
    return choose(record, rounds) if rounds else None


def choose(record: int, rounds: Sequence[Round]) -> ReadTuning:
    """The choice that measurements lead to.

    Args:
        record: Bytes of a record.
        rounds: What was measured.
    """
    depths = [(depth, 1, False) for depth in DEPTHS if (depth, 1, False) in rounds[0]]
    alone, *several = depths
    best = _worthwhile(several, rounds, _WORTH)
    if _is_worth(alone, best, rounds, _WORTH_ALONE):
        best = alone
    parts = [(count, count, True) for count in PARTS if count <= best[0] and (count, count, True) in rounds[0]]
    return ReadTuning(
        at_once=best[0],
        parts=_worthwhile(parts, rounds, _WORTH)[1],
        record=record,
        trials=tuple(
            Trial(at_once=way[0], parts=way[1], lone=way[2], bytes_per_second=statistics.median(e[way] for e in rounds))
            for way in rounds[0]
        ),
    )


def _worthwhile(ways: Sequence[Way], rounds: Sequence[Round], factor: float) -> Way:
    """The first way, unless a later one is worth it."""
    chosen = ways[0]
    for way in ways[1:]:
        if _is_worth(way, chosen, rounds, factor):
            chosen = way
    return chosen


def _is_worth(way: Way, other: Way, rounds: Sequence[Round], factor: float) -> bool:
    ratios = [each[way] / each[other] for each in rounds]
    return min(ratios) > 1 and statistics.median(ratios) >= factor


def _usable(extents: Sequence[Extent]) -> list[Extent]:
    aligned = [each for each in extents if not (each.offset % RECORD_ALIGNMENT or each.nbytes % RECORD_ALIGNMENT)]
    sizes = [each.nbytes for each in aligned]
    if not sizes:
        return []
    size = statistics.mode(sizes)
    files = sorted({each.source for each in aligned}, key=lambda source: str(source.place))
    some = set(random.Random(0).sample(files, min(_MOST_FILES, len(files))))
    return [each for each in aligned if each.nbytes == size and each.source in some]


def _rounds(reading: _Lanes, record: int, seconds: float) -> list[Round]:
    count = min(_MOST_RECORDS, max(DEPTHS[-1], _BATCH // record))
    ways: dict[Way, Callable[[], float]] = {}
    for depth in DEPTHS:
        if depth <= reading.lanes:
            ways[depth, 1, False] = partial(reading.many, count, depth)
    for parts in PARTS:
        if parts <= reading.lanes and parts * RECORD_ALIGNMENT <= record:
            ways[parts, parts, True] = partial(reading.one_by_one, -(-count // 4), parts)
    began = time.perf_counter()
    rounds: list[Round] = []
    order = list(ways)
    # Beyond the least, no round is begun that would end after the time is up.
    while len(rounds) < _LEAST_ROUNDS or (time.perf_counter() - began) * (1 + 1 / len(rounds)) < seconds:
        found: Round = {}
        for way in order:
            if time.perf_counter() - began > _PATIENCE * seconds:
                return rounds
            found[way] = ways[way]()
        rounds.append({way: found[way] for way in ways})
        # Neither end of a round is always the same way's.
        order = order[1:] + order[:1]
    return rounds


class _Lanes:
    """Threads with a buffer each that read records drawn at random.

    Args:
        extents: Records of one size.
        lanes: Threads.
    """

    def __init__(self, extents: Sequence[Extent], lanes: int) -> None:
        self.lanes = lanes
        self._extents = list(extents)
        self._deck: list[Extent] = []
        self._draw = random.Random(0)
        self._resources = ExitStack()
        try:
            self._files = {source: self._open(source) for source in {each.source for each in extents}}
            size = round_up(extents[0].nbytes, HUGE_PAGE)
            buffer = self._resources.enter_context(mmap.mmap(-1, lanes * size))
            with suppress(OSError, AttributeError):
                buffer.madvise(mmap.MADV_HUGEPAGE)
            view = self._resources.enter_context(memoryview(buffer))
            self._buffers = [
                self._resources.enter_context(view[lane * size : (lane + 1) * size]) for lane in range(lanes)
            ]
            self._pool = self._resources.enter_context(ThreadPoolExecutor(lanes))
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def many(self, count: int, at_once: int) -> float:
        """Bytes per second of so many records, whole, with so many outstanding."""
        extents = self._some(count)
        work = list(extents)

        def run(lane: int) -> None:
            while True:
                try:
                    extent = work.pop()
                except IndexError:
                    return
                self._read(extent, lane, 0, extent.nbytes)

        began = time.perf_counter()
        list(self._pool.map(run, range(at_once)))
        return sum(each.nbytes for each in extents) / (time.perf_counter() - began)

    def one_by_one(self, count: int, parts: int) -> float:
        """Bytes per second of so many records, one after the other, each in so many reads at once."""
        extents = self._some(count)
        began = time.perf_counter()
        for extent in extents:
            step = round_up(-(-extent.nbytes // parts), RECORD_ALIGNMENT)
            starts = range(0, extent.nbytes, step)

            def run(start: int, extent: Extent = extent, step: int = step) -> None:
                self._read(extent, start // step, start, min(extent.nbytes, start + step))

            list(self._pool.map(run, starts))
        return sum(each.nbytes for each in extents) / (time.perf_counter() - began)

    def _read(self, extent: Extent, lane: int, start: int, end: int) -> None:
        view, file = self._buffers[lane], self._files[extent.source]
        while start < end:
            got = file.read_at(view[: end - start], extent.offset + start)
            if got <= 0:
                raise OSError(f"{extent.source.place} ends too early")
            start += got

    def _some(self, count: int) -> list[Extent]:
        """Records drawn at random; none comes again before all have been drawn."""
        drawn: list[Extent] = []
        while len(drawn) < count:
            if not self._deck:
                self._deck = self._draw.sample(self._extents, len(self._extents))
            drawn.append(self._deck.pop())
        return drawn

    def _open(self, source: ByteSource) -> OpenBytes:
        return self._resources.enter_context(closing(source.open("direct")))
