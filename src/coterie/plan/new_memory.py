"""How fast memory that nothing uses yet becomes usable."""

from __future__ import annotations

import mmap
import time
from contextlib import suppress

SLOW = 1e9
"""Bytes per second below which finding memory takes longer than an SSD takes to fill it."""

SAMPLE = 256 * 2**20
"""Bytes tried: more than what a process has just freed somewhere."""

_PAGE = 4096


def new_memory_bandwidth(available: int | None = None) -> float:
    """Bytes per second at which new memory can be written to, on huge pages where there are any.

    The kernel finds and clears a page when it is first touched. In a virtual machine that gives unused memory back to
    its host, the host has to find it, too, which can take many times as long. A cache of experts fills no faster than
    that.

    Args:
        available: Bytes of memory that are free; at most a quarter of them are tried.
    """
    nbytes = SAMPLE if available is None else min(SAMPLE, available // 4)
    nbytes = max(nbytes // _PAGE, 1) * _PAGE
    with mmap.mmap(-1, nbytes) as memory, memoryview(memory) as pages:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        began = time.perf_counter()
        pages[::_PAGE] = bytes(nbytes // _PAGE)
        return nbytes / max(time.perf_counter() - began, 1e-9)
