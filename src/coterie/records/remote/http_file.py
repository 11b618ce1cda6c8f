"""A file of a server as what bytes come from: read by ranges, and kept nowhere."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Protocol

from coterie.spec import Access, OpenBytes


class ReadsRanges(Protocol):
    """Whoever reads ranges of files: :class:`~coterie.records.remote.range_reader.RangeReader`."""

    def read_some(self, file: HttpFile, offset: int, buffer: memoryview) -> int:
        """Fills a buffer from an offset on, or a part of it where that is here already; returns how many bytes.

        Raises:
            CheckpointFileError: If they cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpFile:
    """A file of a server; a :class:`~coterie.spec.ByteSource`. Two of the same address have the same bytes.

    Attributes:
        address: Its address, which names one content for ever, as that of a file of one commit does.
        name: What people call it.
        nbytes: Its size.
        sha256: Checksum of its content as 64 hex digits, or None if nobody states one.
        header: Its first bytes, as they were read before.
        reader: Who reads it.
    """

    address: str
    name: str = field(compare=False)
    nbytes: int = field(compare=False)
    sha256: str | None = field(compare=False)
    header: bytes = field(compare=False, repr=False)
    reader: ReadsRanges = field(compare=False, repr=False)

    @property
    def place(self) -> str:
        """See :class:`~coterie.spec.ByteSource`."""
        return self.name

    @property
    def distant(self) -> bool:
        """See :class:`~coterie.spec.ByteSource`."""
        return True

    def open(self, access: Access) -> OpenBytes:
        """See :class:`~coterie.spec.ByteSource`. Nothing is asked for yet.

        Raises:
            OSError: For direct reads, which are for files of this machine.
        """
        if access == "direct":
            raise OSError(errno.EINVAL, "there are no direct reads from servers", self.name)
        return OpenHttpFile(self)


class OpenHttpFile:
    """An :class:`~coterie.spec.OpenBytes` of a server's file; connections are the reader's.

    Args:
        file: Which file it is.
    """

    def __init__(self, file: HttpFile) -> None:
        self._file = file

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See :class:`~coterie.spec.OpenBytes`.

        Raises:
            CheckpointFileError: If the bytes cannot be had.
        """
        return self._file.reader.read_some(self._file, offset, buffer)

    def will_read(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`; what is read ahead is said to the reader, across files."""

    def drop(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`; nothing is kept."""

    def size(self) -> int:
        """See :class:`~coterie.spec.OpenBytes`."""
        return self._file.nbytes

    def close(self) -> None:
        """See :class:`~coterie.spec.OpenBytes`; connections stay open for the next read."""
