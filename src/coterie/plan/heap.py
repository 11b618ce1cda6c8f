"""How this process takes memory from the system: one heap for small things, and large tensors beside it.

glibc gives each thread a heap of its own, up to eight per processor, and keeps what is freed there for that thread.
Each thread that has run a long prompt then holds on to its activations, and several together to several times what was
planned for, though only one of them computed at a time.

It also puts tensors of up to 32 MiB on a heap, once one of that size has been freed. Keys and values stay there between
activations that go, and what goes leaves gaps that the next layer's tensors do not fit into. Beside the heap, a tensor
takes what it needs, and gives all of it back.
"""

from __future__ import annotations

import ctypes
import os

ARENAS = "MALLOC_ARENA_MAX"
"""Environment variable by which a user says how many heaps there are."""

LARGE = "MALLOC_MMAP_THRESHOLD_"
"""That says from how many bytes on memory is not taken from a heap."""

KEPT = "MALLOC_TRIM_THRESHOLD_"
"""That says how many free bytes at the end of a heap are kept."""

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""That says whether torch asks for pages of 2 MiB for tensors of that size: they are taken in far fewer steps."""

_SETTINGS = {ARENAS: (-8, 1), LARGE: (-3, 1 << 20), KEPT: (-1, 64 << 20)}
"""Variable -> the parameter of ``malloc.h`` that it is for, and what it is set to."""


def settle_heap() -> bool:
    """Has what is taken from now on come from one heap, or from beside it; returns whether all of that was possible.

    Not where the environment says otherwise, and not with another C library than glibc, whose allocator has no such
    settings.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other libraries with a mallopt count otherwise
        done = [not os.environ.get(name) and bool(library.mallopt(*said)) for name, said in _SETTINGS.items()]
    except (OSError, AttributeError, TypeError):
        return False
    return all(done)


def ask_for_huge_pages() -> None:
    """Has torch ask for large pages, in this process and those that it starts, unless the environment says otherwise.

    Torch looks when it makes its first tensor: later, this has no effect.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
