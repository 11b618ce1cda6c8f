"""Bytes of a record that belong to no field. They are zero, so that equal experts are equal records."""

from __future__ import annotations

from coterie.spec import RecordLayout


def padding_ranges(layout: RecordLayout) -> tuple[tuple[int, int], ...]:
    """``(begin, end)`` byte ranges of the record outside every field."""
    ranges: list[tuple[int, int]] = []
    position = 0
    for field in layout.fields:
        if field.offset > position:
            ranges.append((position, field.offset))
        position = field.offset + field.nbytes
    if layout.nbytes > position:
        ranges.append((position, layout.nbytes))
    return tuple(ranges)


def first_nonzero(data: memoryview | bytes) -> int | None:
    """Index of the first byte that is not zero, or None."""
    plain = bytes(data)
    rest = plain.lstrip(b"\0")
    return len(plain) - len(rest) if rest else None
