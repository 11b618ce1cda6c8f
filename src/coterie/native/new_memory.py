"""Has the kernel find memory before it is needed."""

from __future__ import annotations

import ctypes

from coterie.native.library import Library


def touch_when_idle(library: Library, memory: memoryview) -> float:
    """Writes to every page of memory that nobody uses, on a thread that only runs while a processor is idle.

    Returns when that is done, which may take long; other Python threads go on. Where the system has no such priority
    (all but Linux) it runs at the usual one.

    Args:
        library: The native library.
        memory: Writable; what is in it is lost.

    Returns:
        Seconds of processor time that it took.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return int(library.functions.coterie_touch_when_idle(address, memory.nbytes)) / 1e9
