"""Where experts come from: the contract between whoever knows the bytes' place and whoever reads them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coterie.spec.keys import ExpertKey
from coterie.spec.layout import RecordLayout
from coterie.spec.stamp import FileStamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of bytes of a file and its place in a record.

    Attributes:
        path: The file.
        offset: Byte offset in the file.
        nbytes: Number of bytes.
        at: Byte offset in the record.
        stamp: What the file was when its bytes were located; None if nobody looked. Another file is never read.
    """

    path: Path
    offset: int
    nbytes: int
    at: int = 0
    stamp: FileStamp | None = None


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
