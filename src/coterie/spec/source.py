"""Where experts come from: the contract between whoever knows the bytes' place and whoever reads them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from coterie.spec.keys import ExpertKey
from coterie.spec.layout import RecordLayout

Access = Literal["direct", "scattered", "in order"]
"""How bytes will be asked for: past every cache, in whole aligned blocks; here and there; one after the other."""


class OpenBytes(Protocol):
    """Bytes that are open for reading, by several threads at once."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Reads up to ``len(buffer)`` bytes from ``offset``; returns how many, 0 at the end.

        Raises:
            OSError: If they cannot be read, or are not what they were when they were located.
        """
        ...

    def will_read(self, offset: int, nbytes: int) -> None:
        """Says that these bytes are read soon."""
        ...

    def drop(self, offset: int, nbytes: int) -> None:
        """Says that whole pages among these bytes need not stay in any cache."""
        ...

    def size(self) -> int:
        """How many bytes there are now."""
        ...

    def close(self) -> None:
        """Closes them."""
        ...


class ByteSource(Protocol):
    """Where bytes come from, and what they have to be: equal sources have equal bytes.

    :class:`coterie.records.LocalFile` is a file of this machine, :class:`coterie.records.remote.HttpFile` one of a
    server that is asked for ranges. Nobody who reads has to know.
    """

    @property
    def place(self) -> Path | str:
        """What people call it."""
        ...

    @property
    def distant(self) -> bool:
        """Whether every read costs the way to a server and back, so that neighbours are better read together."""
        ...

    def open(self, access: Access) -> OpenBytes:
        """Opens it; whoever asked closes it.

        Raises:
            OSError: If it cannot be opened, or is not what it was when its bytes were located; EINVAL or EOPNOTSUPP if
                it cannot be read in this way.
        """
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of bytes and its place in a record.

    Attributes:
        source: Where the bytes come from.
        offset: Their offset there.
        nbytes: How many.
        at: Byte offset in the record.
    """

    source: ByteSource
    offset: int
    nbytes: int
    at: int = 0


class ExpertSource(Protocol):
    """A store or a checkpoint, seen as a map from expert to record. Safe to call from several threads."""

    def keys(self) -> Collection[ExpertKey]:
        """The experts that are present."""
        ...

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        ...

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the record's bytes lie, or None if they must be computed (then ``read_into`` is used).

        Bytes of the record outside every extent are padding.
        """
        ...

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Decodes the record into ``record`` (``layout.nbytes`` writable bytes); returns the bytes read from disk."""
        ...

    def checksum(self, key: ExpertKey) -> str | None:
        """xxh3-128 of the whole record as 32 hex digits, or None where the source keeps none (checkpoints)."""
        ...
