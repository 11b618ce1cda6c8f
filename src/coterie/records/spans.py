"""Extents of a record that lie side by side in their file, read together and copied to their places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from coterie.spec import ByteSource, Extent

_GAP = 64 * 2**10
"""Tensors that are no further apart are read together: skipping so little costs more than reading it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring extents of one file.

    Attributes:
        source: The file.
        start: Offset of the first byte.
        end: Offset after the last byte.
        extents: In ascending order of offset.
    """

    source: ByteSource
    start: int
    end: int
    extents: tuple[Extent, ...]


def join_extents(extents: Iterable[Extent], gap: int = _GAP) -> tuple[Span, ...]:
    """The fewest spans that hold the extents, leaving out gaps larger than ``gap`` bytes."""
    spans: list[Span] = []
    for extent in sorted(extents, key=lambda one: (str(one.source.place), one.offset)):
        end = extent.offset + extent.nbytes
        last = spans[-1] if spans else None
        if last is not None and last.source == extent.source and extent.offset - last.end <= gap:
            spans[-1] = Span(last.source, last.start, max(last.end, end), (*last.extents, extent))
        else:
            spans.append(Span(extent.source, extent.offset, end, (extent,)))
    return tuple(spans)


def distribute(span: Span, position: int, count: int, record: memoryview, scratch: memoryview) -> None:
    """Copies the parts of extents that lie in ``[position, position + count)`` to their places in the record."""
    target, source = np.frombuffer(record, np.uint8), np.frombuffer(scratch, np.uint8)
    for extent in span.extents:
        begin = max(extent.offset, position)
        end = min(extent.offset + extent.nbytes, position + count)
        if begin < end:
            at = extent.at + begin - extent.offset
            np.copyto(target[at : at + end - begin], source[begin - position : end - position])
