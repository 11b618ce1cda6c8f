"""Files of a store beside its weights, compared with their checksums as a whole."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import xxhash

from coterie.errors import ChecksumError, ReadError
from coterie.records import LocalFile
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
    buffer = memoryview(bytearray(min(_PIECE, facts.nbytes + 1)))
    try:
        with closing(LocalFile(path, stamp).open("in order")) as file:
            # It stays in the page cache: whoever asked for this is about to have it read.
            position = 0
            while count := file.read_at(buffer, position):
                digest.update(buffer[:count])
                position += count
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
