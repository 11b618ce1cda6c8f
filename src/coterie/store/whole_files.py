"""Files of a store beside its weights, compared with their checksums as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import xxhash

from coterie.errors import ChecksumError, ReadError
from coterie.records.stamps import check_unchanged, open_unchanged
from coterie.spec import FileStamp
from coterie.store.manifest import FileFacts

_PIECE = 4 << 20


def check_whole(root: Path, facts: FileFacts, stamp: FileStamp | None) -> None:
    """Compares a file with its checksum (rule R28).

    Args:
        root: The store.
        facts: What the manifest says.
        stamp: What the file was when the store was opened.

    Raises:
        ChecksumError: If its bytes are others.
        ReadError: If it cannot be read, or has changed since.
    """
    path = root / facts.file
    digest = xxhash.xxh3_128()
    try:
        for piece in _pieces(path, stamp):
            digest.update(piece)
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read: {error.strerror or error}.",
            advice="Check the disk and its permissions.",
            path=path,
        ) from error
    if digest.hexdigest() != facts.checksum:
        raise ChecksumError(
            f"{path} differs from its checksum: expected {facts.checksum}, got {digest.hexdigest()}.",
            advice="If you changed it, run 'coterie stores refresh'; if not, it is damaged: extract the store again.",
            path=path,
            expected=facts.checksum,
            got=digest.hexdigest(),
        )


def _pieces(path: Path, stamp: FileStamp | None) -> Iterator[bytes]:
    with FileIO(open_unchanged(path, stamp), "rb") as file:
        while piece := file.read(_PIECE):
            yield piece
        check_unchanged(file.fileno(), path, stamp)
