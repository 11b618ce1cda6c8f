"""What torch's kernel compilers keep in memory: oneDNN compiles code for every shape of product that it meets.

Prompts have many lengths and an expert gets any number of a prompt's tokens, so shapes keep coming. Two caches hold on
to what was compiled, torch's of primitives (``LRU_CACHE_CAPACITY`` entries) and oneDNN's own
(``ONEDNN_PRIMITIVE_CACHE_CAPACITY``), 1024 entries each by default. A long-running process fills them with over half a
GiB, which a budget for the whole process has to bound. A decode step needs a few dozen entries; a prompt whose shapes
do not fit compiles them again, which costs small models some speed and large ones little.
"""

from __future__ import annotations

import os

from coterie.spec import format_bytes

_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
_DEFAULT_ENTRIES = 1024
_LEAST_ENTRIES = 64
_SHARE = 20
_ENTRY_NBYTES = 320 << 10
"""Bytes of an entry of either cache: AVX-512 kernels were measured to take 280 to 310 KB."""


def compiled_kernels_nbytes(budget: int) -> int:
    """An upper bound on what both full caches take, as :func:`bound_compiled_kernels` would leave them."""
    return sum(_entries(name, budget) * _ENTRY_NBYTES for name in _CACHES)


def bound_compiled_kernels(budget: int) -> None:
    """Bounds both caches to a twentieth of a budget, for this process and those that it starts.

    Only where the environment does not say how large they are. Each cache reads its size when it is first used, so this
    has an effect only before torch has multiplied in bf16.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_entries(name, budget)))


def leave_kernels_unbounded() -> None:
    """Writes the defaults down where nothing is said, before a model without a budget fills caches of that size.

    A later model with a budget then counts what they take, instead of believing that it can still bound them.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_DEFAULT_ENTRIES))


def unbounded_note(budget: int) -> str:
    """Why compiled kernels take more of a budget than they would in a fresh process; empty if they do not."""
    large = [
        f"{name}={os.environ[name]}"
        for name in _CACHES
        if os.environ.get(name) and _entries(name, budget) > _share(budget)
    ]
    if not large:
        return ""
    return (
        f" Compiled kernels may take {format_bytes(compiled_kernels_nbytes(budget))} in this process, because "
        f"{' and '.join(large)} (set by the environment, or by a model that was opened without a budget): in a fresh "
        "process without these variables they take less."
    )


def _share(budget: int) -> int:
    """Entries of each cache in a twentieth of a budget."""
    entries = budget // _SHARE // (len(_CACHES) * _ENTRY_NBYTES)
    return min(max(entries, _LEAST_ENTRIES), _DEFAULT_ENTRIES)


def _entries(name: str, budget: int) -> int:
    stated = os.environ.get(name, "")
    if stated:
        return int(stated) if stated.isdigit() else _DEFAULT_ENTRIES
    return _share(budget)
