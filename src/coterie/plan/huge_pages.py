"""Whether memory that should be on transparent huge pages is."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

from coterie.plan.machine import SYSTEM_ROOT

HUGE_PAGE = 2 * 2**20


def huge_page_nbytes(start: int, nbytes: int, *, root: Path = SYSTEM_ROOT) -> int | None:
    """Bytes on huge pages of the mappings that begin in a range of addresses; None where the kernel does not tell.

    Args:
        start: First address.
        nbytes: Length of the range.
        root: Where ``/proc`` lies.
    """
    total, inside, told = 0, False, False
    try:
        with (root / "proc/self/smaps").open("rb") as lines:
            for line in lines:
                name, _, rest = line.partition(b" ")
                if not name.endswith(b":"):
                    begin, _, _ = name.partition(b"-")
                    inside = start <= int(begin, 16) < start + nbytes
                elif name == b"AnonHugePages:":
                    told = True
                    total += int(rest.split()[0]) * 1024 * inside
    except (OSError, ValueError, IndexError):
        return None
    return total if told else None


def huge_pages_work(*, root: Path = SYSTEM_ROOT) -> bool | None:
    """Whether memory that asks for huge pages gets one now; None where that cannot be told."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    with mmap.mmap(-1, 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        anchor = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(anchor)
        del anchor
        memory[-address % HUGE_PAGE] = 1
        # The advice makes it a mapping of its own, whatever lies beside it.
        found = huge_page_nbytes(address, len(memory), root=root)
    return None if found is None else found > 0
