"""Whether the bytes of a record that belong to no field are zero."""

from __future__ import annotations

from coterie.spec import RecordLayout


class PaddingCheck:
    """Whether the padding of one record is zero, told about the record's bytes piece by piece and in order.

    Attributes:
        nonzero: Position of the first byte that is not, or None.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.nonzero: int | None = None
        self._ranges = layout.padding
        self._position = 0

    def look(self, piece: memoryview | bytes) -> None:
        """Looks at the next bytes of the record."""
        start, view = self._position, memoryview(piece)
        self._position += len(view)
        for begin, end in self._ranges:
            if self.nonzero is not None or begin >= self._position:
                return
            if end > start:
                first = max(begin, start)
                found = first_nonzero(view[first - start : end - start])
                self.nonzero = None if found is None else first + found


def first_nonzero(data: memoryview | bytes) -> int | None:
    """Index of the first byte that is not zero, or None."""
    plain = bytes(data)
    rest = plain.lstrip(b"\0")
    return len(plain) - len(rest) if rest else None
