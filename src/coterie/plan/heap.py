"""One heap for all threads: what one of them frees is what the next one takes.

glibc gives each thread a heap of its own, up to eight per processor, and keeps what is freed there for that thread.
Each thread that has run a long prompt then holds on to its activations, and several together to several times what was
planned for, though only one of them computed at a time.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "MALLOC_ARENA_MAX"
"""Environment variable by which a user says how many heaps there are."""

_M_ARENA_MAX = -8
"""Of ``malloc.h``."""


def share_one_heap() -> bool:
    """Has threads that begin from now on use one heap; returns whether they do.

    Not where the environment says how many heaps there are, and not with another C library than glibc, whose
    allocator has no such setting.
    """
    if os.environ.get(VARIABLE):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other libraries with a mallopt count otherwise
        return bool(library.mallopt(_M_ARENA_MAX, 1))
    except (OSError, AttributeError, TypeError):
        return False
