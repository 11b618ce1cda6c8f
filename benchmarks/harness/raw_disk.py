"""What a disk gives: random reads of a size past the page cache."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def raw_bandwidth(file: Path, read_nbytes: int, *, depth: int, seconds: float = 2.0, seed: int = 0) -> float:
    """Bytes per second of direct reads at random places of a file, into memory that is in use.

    Args:
        file: A file much larger than what is read.
        read_nbytes: Bytes of a read, a multiple of 4096.
        depth: Reads at once.
        seconds: How long.
        seed: Of the places.
    """
    deadline = time.perf_counter() + seconds

    def buffers(_: int) -> Iterator[memoryview]:
        with mmap.mmap(-1, read_nbytes) as memory, memoryview(memory) as buffer:
            while time.perf_counter() < deadline:
                yield buffer

    return _bandwidth(file, read_nbytes, depth, seed, buffers)


@contextmanager
def raw_bandwidth_to_new_memory(
    file: Path, read_nbytes: int, *, depth: int, nbytes: int, seed: int = 0
) -> Iterator[float]:
    """Bytes per second of such reads into memory that no process has used yet, on huge pages where there are any.

    The kernel finds and clears that memory first. In a virtual machine that gives unused memory back, the host has to
    find it, too, which can take several times as long as the read. Inside the context the memory stays in use, so that
    the next measurement does not find it.

    Args:
        file: A file much larger than what is read.
        read_nbytes: Bytes of a read, a multiple of 4096.
        depth: Reads at once.
        nbytes: Bytes to read in all, at least ``depth`` reads.
        seed: Of the places.
    """
    each = max(1, nbytes // (depth * read_nbytes))
    with mmap.mmap(-1, depth * each * read_nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)

        def buffers(number: int) -> Iterator[memoryview]:
            with memoryview(memory) as whole:
                for place in range(number * each, (number + 1) * each):
                    with whole[place * read_nbytes : (place + 1) * read_nbytes] as buffer:
                        yield buffer

        yield _bandwidth(file, read_nbytes, depth, seed, buffers)


def _bandwidth(
    file: Path, read_nbytes: int, depth: int, seed: int, buffers: Callable[[int], Iterator[memoryview]]
) -> float:
    """Fills the buffers of each of ``depth`` threads."""
    places = max(1, (file.stat().st_size - read_nbytes) // 4096)
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    counts = [0] * depth

    def read(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        for buffer in buffers(number):
            counts[number] += os.preadv(descriptor, [buffer], 4096 * draw.randrange(places))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(depth)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    return sum(counts) / (time.perf_counter() - began)
