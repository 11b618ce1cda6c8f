"""Rows group by group; which weights share a scale is said by :func:`coterie.spec.encodings.group_size`."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.spec.encodings import group_size


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
