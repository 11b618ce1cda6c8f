"""The OpenMP runtime that torch computes with, and how its threads wait for each other.

At the end of each piece of work threads wait for the last one. Turning on the spot (spinning) is quickest while each
thread has a processor. Beside another busy process the thread that all wait for may be the one without a processor,
and those that turn keep theirs for nothing: a small model becomes several times slower (``benchmarks/bench_busy.py``).
Sleeping costs little then; on an idle machine it slows a small model, because a processor that sleeps takes long to
wake.

GNU's runtime (libgomp, which torch's wheels for Linux bring) turns only for a moment where it has more threads than
there are processors (``GOMP_SPINCOUNT`` in its manual). :class:`Crowd` makes it so for as long as it is wanted: the one
way to change this while a process runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path
from typing import Literal

import torch

SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
"""What the native library needs of a runtime."""

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user says how threads wait."""

_SHORT = 10_000
"""Turns on the spot that take well under a millisecond."""

Waiting = Literal["adaptive", "stated", "unknown"]
"""``adaptive``: by what other processes do (:class:`Crowd`); ``stated``: as the environment says; ``unknown``: as a
runtime that is not GNU's does it."""


def runtime_symbols() -> tuple[ctypes.c_void_p, ...] | None:
    """Addresses of ``SYMBOLS`` in the very runtime that torch computes with; None if there is none to be found."""
    torch_library = _torch_library()
    if torch_library is None:
        return None
    return tuple(ctypes.cast(getattr(torch_library, symbol), ctypes.c_void_p) for symbol in SYMBOLS)


def waiting() -> Waiting:
    """How threads wait for each other in this process."""
    if any(os.environ.get(name) for name in SETTINGS):
        return "stated"
    return "adaptive" if _is_gnu() else "unknown"


def waiting_words() -> str:
    """The same in a few words, for people."""
    stated = [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)]
    if stated:
        return f"as {' and '.join(stated)} says"
    if waiting() == "adaptive":
        return "turn on the spot; sleep while other processes need the processors"
    return "as torch's OpenMP runtime has it, which is not GNU's"


def turns_for_long() -> bool:
    """Whether threads turn on the spot for milliseconds, whatever other processes do."""
    if waiting() == "unknown":
        return True
    policy, count = (os.environ.get(name, "").strip().lower() for name in SETTINGS)
    if count:
        return not count.isdigit() or int(count) > _SHORT
    return policy == "active"


class Crowd:
    """While it stands, GNU's OpenMP runtime has more threads than processors, so none turns on the spot for long.

    The threads sleep. Nothing that is computed changes.
    """

    def __init__(self) -> None:
        self._leave: threading.Event | None = None
        self._host: threading.Thread | None = None

    @property
    def stands(self) -> bool:
        """Whether it is there."""
        return self._host is not None

    def gather(self) -> None:
        """Makes the threads. Harmless when repeated."""
        if self._host is not None or not _is_gnu():
            return
        there, self._leave = threading.Event(), threading.Event()
        self._host = threading.Thread(target=_host, args=(there, self._leave), name="coterie-openmp-crowd", daemon=True)
        self._host.start()
        there.wait()

    def scatter(self) -> None:
        """Ends the threads. Harmless when repeated."""
        if self._host is None or self._leave is None:
            return
        self._leave.set()
        self._host.join()
        self._host = self._leave = None


def _host(there: threading.Event, leave: threading.Event) -> None:
    """Keeps a team of its own, which belongs to the thread and ends with it."""
    try:
        library = _torch_library()
        if library is None:
            return
        # The work of each: to free nothing.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        parallel = library.GOMP_parallel
        parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        parallel(nothing, None, max(library.omp_get_num_procs(), os.cpu_count() or 1) + 1, 0)
    finally:
        there.set()
    leave.wait()


@cache
def _torch_library() -> ctypes.CDLL | None:
    """The library of torch; a name is looked up in what it was linked with, too. None without an OpenMP runtime."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            found = ctypes.CDLL(str(folder / name), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except (OSError, AttributeError):
            continue
        if all(hasattr(found, symbol) for symbol in SYMBOLS):
            return found
    return None


@cache
def _is_gnu() -> bool:
    """LLVM's and Intel's runtimes have GNU's functions, too, and this one of their own."""
    library = _torch_library()
    return library is not None and not hasattr(library, "__kmpc_fork_call")
