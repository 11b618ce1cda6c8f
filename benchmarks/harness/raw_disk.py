"""What a disk gives: random reads of a size past the page cache."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from pathlib import Path


def raw_bandwidth(file: Path, read_nbytes: int, *, depth: int, seconds: float = 2.0, seed: int = 0) -> float:
    """Bytes per second of direct reads at random places of a file.

    Args:
        file: A file much larger than what is read.
        read_nbytes: Bytes of a read, a multiple of 4096.
        depth: Reads at once.
        seconds: How long.
        seed: Of the places.
    """
    places = max(1, (file.stat().st_size - read_nbytes) // 4096)
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    deadline = time.perf_counter() + seconds
    counts = [0] * depth

    def read(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        with mmap.mmap(-1, read_nbytes) as buffer:
            while time.perf_counter() < deadline:
                counts[number] += os.preadv(descriptor, [buffer], 4096 * draw.randrange(places))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(depth)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    return sum(counts) / (time.perf_counter() - began)
