"""What torch's kernel compilers keep in memory: oneDNN compiles code for every shape of product that it meets.

Prompts have many lengths and an expert gets any number of a prompt's tokens, so shapes keep coming. Two caches hold on
to what was compiled: oneDNN's own (``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` entries), and torch's in front of it
(``LRU_CACHE_CAPACITY``), of which *each thread has one*. Both have 1024 entries by default. A long-running process
fills them with over half a GiB, and each further thread takes as much again: a budget for the process has to bound it.

What torch's cache lacks it finds in oneDNN's, for less than 2 µs, so nearly all goes to the one that threads share. A
decode step needs a few dozen entries of that; a prompt whose shapes do not fit compiles them again, which costs small
models some speed and large ones little.
"""

from __future__ import annotations

import os

from coterie.spec import format_bytes

_SHARED = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_PER_THREAD = "LRU_CACHE_CAPACITY"
_DEFAULT_ENTRIES = 1024
_THREAD_ENTRIES = 8
_LEAST_ENTRIES = 128 - _THREAD_ENTRIES
_SHARE = 20
_ENTRY_NBYTES = 320 << 10
"""Bytes of an entry of either cache: AVX-512 kernels were measured to take 280 to 310 KB."""


def compiled_kernels_nbytes(budget: int) -> int:
    """An upper bound on what full caches take, as :func:`bound_compiled_kernels` would leave them.

    That of one thread: what few entries of further threads hold beyond the shared ones is left to the margin.
    """
    return sum(_entries(name, budget) for name in (_SHARED, _PER_THREAD)) * _ENTRY_NBYTES


def bound_compiled_kernels(budget: int) -> None:
    """Bounds the caches to a twentieth of a budget, for this process and those that it starts.

    Only where the environment does not say how large they are. Each cache reads its size when it is first used, so this
    has an effect only before torch has multiplied in bf16.
    """
    for name in (_SHARED, _PER_THREAD):
        os.environ.setdefault(name, str(_entries(name, budget)))


def leave_kernels_unbounded() -> None:
    """Writes the defaults down where nothing is said, before a model without a budget fills caches of that size.

    A later model with a budget then counts what they take, instead of believing that it can still bound them.
    """
    for name in (_SHARED, _PER_THREAD):
        os.environ.setdefault(name, str(_DEFAULT_ENTRIES))


def unbounded_note(budget: int) -> str:
    """Why compiled kernels take more of a budget than they would in a fresh process; empty if they do not."""
    large = [
        f"{name}={os.environ[name]}"
        for name in (_SHARED, _PER_THREAD)
        if os.environ.get(name) and _entries(name, budget) > _bounded(name, budget)
    ]
    if not large:
        return ""
    return (
        f" Compiled kernels may take {format_bytes(compiled_kernels_nbytes(budget))} in this process, because "
        f"{' and '.join(large)} (set by the environment, or by a model that was opened without a budget): in a fresh "
        "process without these variables they take less."
    )


def _bounded(name: str, budget: int) -> int:
    """Entries of a cache that a budget bounds."""
    if name == _PER_THREAD:
        return _THREAD_ENTRIES
    entries = budget // _SHARE // _ENTRY_NBYTES - _THREAD_ENTRIES
    return min(max(entries, _LEAST_ENTRIES), _DEFAULT_ENTRIES)


def _entries(name: str, budget: int) -> int:
    stated = os.environ.get(name, "")
    if stated:
        return int(stated) if stated.isdigit() else _DEFAULT_ENTRIES
    return _bounded(name, budget)
