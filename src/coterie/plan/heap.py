"""How this process takes memory from the system: one heap for all threads, and large tensors beside it.

glibc gives each thread a heap of its own, up to eight per processor, and keeps what is freed there for that thread.
Each thread that has run a long prompt then holds on to its activations, and several together to several times what was
planned for, though only one of them computed at a time.

It also puts tensors of up to 32 MiB on a heap, once one of that size has been freed. A long prompt's keys and values
then stay between activations that go, and what goes leaves gaps that the next layer's tensors do not fit into. Beside
the heap, a tensor takes what it needs, and gives all of it back. But its pages are new each time, which takes a tenth
of a prompt's time. So that is done only for passes that memory could become short in.
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

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
"""Of ``malloc.h``."""

_BESIDE, _ON_HEAP, _KEPT_NBYTES = 1 << 20, 32 << 20, 64 << 20
"""What is not taken from a heap: where gaps are to be few, and where time counts (the most that glibc sets itself)."""


class _State:
    """Whether this process's heap is settled, and which tensors are beside it; None before that was said."""

    settled = False
    beside: bool | None = None


def settle_heap() -> bool:
    """Has threads that begin from now on use one heap, and :func:`keep_off_heap` do something; returns whether it does.

    Not where the environment says how many heaps there are, and not with another C library than glibc, whose
    allocator has no such setting.
    """
    if os.environ.get(ARENAS):
        return False
    _State.settled = _State.settled or _set(_M_ARENA_MAX, 1)
    return _State.settled


def keep_off_heap(large: bool) -> None:
    """Says whether tensors of 1 MiB or more are taken beside the heap from now on; cheap where that is so already.

    Not where the environment says what is taken beside it, or the heap is not settled.

    Args:
        large: Whether they are; if not, those of 32 MiB or more.
    """
    if large == _State.beside or not _State.settled or os.environ.get(LARGE) or os.environ.get(KEPT):
        return
    if large or _State.beside is not None:  # glibc chooses by itself until it is told
        _set(_M_MMAP_THRESHOLD, _BESIDE if large else _ON_HEAP)
        _set(_M_TRIM_THRESHOLD, _KEPT_NBYTES)
        _State.beside = large


def _set(parameter: int, value: int) -> bool:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other libraries with a mallopt count otherwise
        return bool(library.mallopt(parameter, value))
    except (OSError, AttributeError, TypeError):
        return False
