"""Which weights of a row share a scale."""

from __future__ import annotations

from collections.abc import Iterator

GROUP = 64
"""Weights along the input that share a scale."""

_SMALLER = 32


def group_size(columns: int) -> int:
    """How many neighbouring weights of a row of ``columns`` form a group.

    64 if that divides the row, else 32 if that does (128 divides no row that 64 does not), else 64 with a shorter group
    at the end. A pure function of the row's length, so that a record need not say it.
    """
    return _SMALLER if columns % GROUP and columns % _SMALLER == 0 else GROUP


def group_count(columns: int) -> int:
    """Groups of a row, a shorter one at the end included."""
    return -(-columns // group_size(columns))


def has_whole_group(columns: int) -> bool:
    """Whether a row has at least one group without padding: of shorter rows little but scales would be stored."""
    return columns >= group_size(columns)


def whole_and_rest(columns: int) -> Iterator[tuple[int, int, int, int]]:
    """The columns as one or two runs of equal groups: ``(first column, end, first group, size of a group)``."""
    size = group_size(columns)
    whole = columns - columns % size
    if whole:
        yield 0, whole, 0, size
    if whole < columns:
        yield whole, columns, whole // size, columns - whole
