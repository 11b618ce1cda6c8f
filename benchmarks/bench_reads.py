"""Reading experts through the cache, against raw reads of the same records.

What a disk gives depends on the size of a read and on how many are outstanding. The cache can at best give the same:
what it adds is Python between the reads (the scheduler, the policy, building tensors), and any moment at which fewer
reads are outstanding than it has threads.

Each reading thread's next record is chosen, given room and opened while the present one is read, so the gap between two
reads should be that of the raw loop, about the same however little is outstanding.

How many at once is best depends on the disk. The cache takes the number that a trial of about a second finds
(`coterie doctor --disk`); what is required holds for that number. Two sizes of record: a bfloat16 expert of
Qwen3-30B-A3B, and the same in four bits.

Every round draws records of the store at random, different ones for each contestant, so that nothing is read from
where it lies already, and reads them once: *raw* with one preadv per record past the page cache into aligned buffers,
by as many threads; *cache* by a lease of all of them in an arena of a few records, with nothing computed in between, so
that a read is outstanding all the time. Both in one process, in turn.
"""

from __future__ import annotations

import mmap
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from harness.machine import wait_until_quiet
from harness.models import LARGE, MEDIUM, generated_store
from harness.options import options
from harness.page_cache import drop
from harness.paired import interleave
from harness.report import Report, Table
from synthetic import Dimensions

LEAST_SHARE = 0.9
FOUR_BITS = Dimensions(layers=4, experts=64, expert_hidden=216)
"""Records of 2.65 MB, as experts of 2048 × 768 have with four bits and their scales."""
SMALL = Dimensions(layers=2, experts=64, expert_hidden=72)
HUGE_PAGE = 2 << 20


class RawReads:
    """Threads that read records with O_DIRECT, one preadv each.

    Args:
        source: Where the records are.
        keys: All that may be asked for.
        depth: Threads.
    """

    def __init__(self, source: Any, keys: Sequence[Any], depth: int) -> None:
        self._extents = {key: source.extents(key) for key in keys}
        if any(len(extents) != 1 for extents in self._extents.values()):
            raise SystemExit("A record of this store is not one extent.")
        paths = {extent.source.path for (extent,) in self._extents.values()}
        self._files = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths}
        longest = max(extent.nbytes for (extent,) in self._extents.values())
        self._buffers = [_buffer(longest) for _ in range(depth)]

    def seconds(self, keys: Sequence[Any]) -> float:
        """Reads these records; returns how long it took."""
        work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for key in keys:
            work.put(self._extents[key][0])
        failures: list[BaseException] = []
        threads = [threading.Thread(target=self._run, args=(work, buffer, failures)) for buffer in self._buffers]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        if failures:
            raise failures[0]
        return took

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._files.values():
            os.close(descriptor)

    def _run(self, work: queue.SimpleQueue[Any], buffer: mmap.mmap, failures: list[BaseException]) -> None:
        try:
            view = memoryview(buffer)
            while True:
                try:
                    extent = work.get_nowait()
                except queue.Empty:
                    return
                done = 0
                while done < extent.nbytes:
                    count = os.preadv(
                        self._files[extent.source.path], [view[done : extent.nbytes]], extent.offset + done
                    )
                    if count == 0:
                        raise SystemExit(f"{extent.source.path} ends too early.")
                    done += count
        except BaseException as error:
            failures.append(error)


def _buffer(nbytes: int) -> mmap.mmap:
    """Memory of its own on huge pages, touched before, as an arena's slots are after their first use."""
    buffer = mmap.mmap(-1, -(-nbytes // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE)
    buffer.write(bytes(len(buffer)))
    return buffer


def cache_reads(cache: Any, keys: Sequence[Any]) -> float:
    """Seconds that a lease of these records takes when nothing is computed."""
    from coterie.cache import Consumer

    began = time.perf_counter()
    with cache.lease(keys, consumer=Consumer()) as lease:
        for _ in lease:
            pass
    return time.perf_counter() - began


def compare(source: Any, depths: Sequence[int], count: int, rounds: int, table: Table) -> dict[int, float]:
    """Reads records both ways with each number at once; returns the cache's share of raw speed by that number."""
    from coterie.cache import ExpertCache

    keys = sorted(source.keys())
    record = source.layout(keys[0]).nbytes
    draw = random.Random(0)
    shares = {}
    for depth in depths:
        with ExpertCache(source, capacity=4 * depth * record, read_threads=depth) as cache:

            def through_cache(cache: Any = cache) -> float:
                absent = [key for key in keys if key not in cache]
                return cache_reads(cache, draw.sample(absent, count))

            through_cache()  # its slots are touched for the first time
            raw = RawReads(source, keys, depth)
            contestants = {"raw": lambda raw=raw: raw.seconds(draw.sample(keys, count)), "cache": through_cache}
            timings = interleave(contestants, rounds)
            raw.close()
        speed = {name: count * record / 1e9 / timings.median(name) for name in ("raw", "cache")}
        spread = {name: [count * record / 1e9 / s for s in reversed(timings.spread(name))] for name in speed}
        shares[depth] = timings.ratio("raw", "cache")
        table.rows.append(
            (
                str(depth),
                f"{speed['raw']:.2f}",
                "{:.2f} … {:.2f}".format(*spread["raw"]),
                f"{speed['cache']:.2f}",
                "{:.2f} … {:.2f}".format(*spread["cache"]),
                f"{shares[depth]:.2f}",
            )
        )
    return shares


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8])
    given = parser.parse_args()
    from coterie.engine.disk_tuning import record_places
    from coterie.plan.queue_depth import tune_reads
    from coterie.store import Store

    wait_until_quiet(given.wait_quiet)
    report = Report("reads", "Reading experts, against raw reads", work=given.work_dir.parent, quick=given.quick)
    for dimensions in (MEDIUM, SMALL) if given.quick else (LARGE, FOUR_BITS):
        path = generated_store(given.work_dir, dimensions).resolve()
        source = Store.open(path)
        record = source.layout(next(iter(source.keys()))).nbytes
        count, rounds = (32, 2) if given.quick else (64, 11)
        drop([path])
        tuning = tune_reads(record_places(source), memory=1 << 30)
        best = 4 if tuning is None else tuning.at_once
        table = report.table(
            f"{count} records of {record / 1e6:.2f} MB a round, {rounds} interleaved rounds; the trial finds {best} at "
            "once best:",
            ("reads at once", "raw, GB/s", "quartiles", "cache, GB/s", "quartiles", "cache / raw"),
        )
        shares = compare(source, sorted({*given.depths, best}), count, rounds, table)
        report.values[f"record {record}"] = {"share": shares, "count": count, "chosen": best}
        report.require(
            f"the cache reaches {LEAST_SHARE} of raw reads of {record / 1e6:.2f} MB, {best} at once",
            f"{shares[best]:.2f}",
            shares[best] >= LEAST_SHARE,
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
