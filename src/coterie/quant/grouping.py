"""Rows group by group; which weights share a scale is said by a scheme's format."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.spec.encodings import SchemeFormat, group_size


def has_whole_group(columns: int) -> bool:
    """Whether a row has at least one usual group without padding: of shorter ones mostly scales would be stored.

    The same for all schemes, so that all of them store the same weights.
    """
    return columns >= group_size(columns)


def whole_and_rest(columns: int, form: SchemeFormat) -> Iterator[tuple[int, int, int, int]]:
    """The columns as one or two runs of equal groups: ``(first column, end, first group, size of a group)``."""
    size = form.group_size(columns)
    whole = columns - columns % size
    if whole:
        yield 0, whole, 0, size
    if whole < columns:
        yield whole, columns, whole // size, columns - whole
