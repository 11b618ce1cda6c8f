"""Rows a few at a time, so that intermediate values stay in the processor's cache and out of the memory budget."""

from __future__ import annotations

from collections.abc import Iterator

_VALUES = 2**17


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover the rows, each of about 131,072 values and at least one row."""
    count = max(1, _VALUES // columns)
    for start in range(0, rows, count):
        yield slice(start, min(start + count, rows))
