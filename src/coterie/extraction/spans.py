"""Reads an expert's tensors in as few and as large reads as their places in the file allow.

A checkpoint's tensors lie at odd offsets, but the tensors of one expert mostly lie side by side. Their span, widened to
whole pages, is read past the page cache into a scratch buffer and copied from there to the fields' aligned places in
the record: one copy, as reading through the page cache has, without making and dropping a page for every 4 KiB.
"""

from __future__ import annotations

import errno
from pathlib import Path

from coterie.errors import CheckpointFileError
from coterie.records.files import FileCache, pages_around
from coterie.records.spans import Span, distribute, join_extents
from coterie.spec import RECORD_ALIGNMENT, ExpertKey, Extent, RecordLayout, round_up

SCRATCH_BYTES = 64 * 2**20
"""Most bytes that a worker reads at once."""


class SpanReader:
    """Fills records from extents. Safe to use from several threads, each with buffers of its own.

    Args:
        direct: Whether to try O_DIRECT.
    """

    def __init__(self, *, direct: bool = True) -> None:
        self._files = FileCache(direct=direct)

    def read(
        self,
        key: ExpertKey,
        layout: RecordLayout,
        extents: tuple[Extent, ...],
        record: memoryview,
        scratch: memoryview,
    ) -> None:
        """Fills ``record``: the fields from the extents, padding with zeros.

        Args:
            key: Which expert, for messages.
            layout: Layout of the record.
            extents: Where its bytes are.
            record: ``layout.nbytes`` bytes.
            scratch: At least two pages, on a page boundary.

        Raises:
            CheckpointFileError: If a file cannot be read or ends too early.
        """
        for begin, end in layout.padding:
            record[begin:end] = bytes(end - begin)
        for span in join_extents(extents):
            try:
                self._read_span(key, span, record, scratch)
            except OSError as error:
                raise _error(key, span.source.place, span.end, str(error)) from error

    def close(self) -> None:
        """Closes the open files."""
        self._files.close()

    def _read_span(self, key: ExpertKey, span: Span, record: memoryview, scratch: memoryview) -> None:
        # From a server the very bytes are asked for: whole pages are for disks.
        position = span.start if span.source.distant else span.start - span.start % RECORD_ALIGNMENT
        if not span.source.distant and self._files.may_be_direct(span.source):
            position = self._copy(span, position, record, scratch, direct=True)
        if position < span.end:
            # Without O_DIRECT, and to tell a file that ends early from one that direct reads cannot finish.
            position = self._copy(span, position, record, scratch, direct=False)
        if position < span.end:
            raise _error(key, span.source.place, span.end, f"the file ends at {position}")

    def _copy(self, span: Span, position: int, record: memoryview, scratch: memoryview, *, direct: bool) -> int:
        """Reads from a page boundary on, as far as it goes; returns the offset that it got to."""
        stop = round_up(span.end, RECORD_ALIGNMENT) if direct else span.end
        try:
            with self._files.reading(span.source, "direct" if direct else "scattered") as file:
                while position < stop:
                    count = file.read_at(scratch[: min(len(scratch), stop - position)], position)
                    distribute(span, position, count, record, scratch)
                    if not direct:
                        file.drop(*pages_around(position, count))
                    position += count
                    if count == 0 or (direct and count % RECORD_ALIGNMENT):
                        break
        except OSError as error:
            if not direct or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self._files.refuse_direct(span.source)
        # A page at the end of the file is not whole: go on from its start.
        return position if position >= span.end else position - position % RECORD_ALIGNMENT if direct else position


def _error(key: ExpertKey, place: Path | str, expected: int, why: str) -> CheckpointFileError:
    return CheckpointFileError(
        f"Expert {key} could not be read: {place} should reach byte {expected}: {why}.",
        advice="The checkpoint is damaged or not readable; mend it and repeat the command: what is finished is kept.",
        path=place,
        key=key,
        expected=expected,
    )
