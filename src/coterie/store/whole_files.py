"""Files of a store compared with their checksums, up to the first that differs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import xxhash

from coterie.errors import ChecksumError, ReadError
from coterie.records import LocalFile, pieces
from coterie.spec import FileStamp
from coterie.store.manifest import FileFacts, Segment

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


def check_records(root: Path, segment: Segment, stamp: FileStamp | None) -> None:
    """Compares all experts of a file with their checksums (rule R27). Arguments and errors as :func:`check_whole`."""
    path = root / segment.file
    try:
        with closing(LocalFile(path, stamp).open("in order")) as file:
            for record in segment.records:
                digest = xxhash.xxh3_128()
                for piece in pieces(file, record.offset, record.nbytes):
                    digest.update(piece)
                if digest.hexdigest() != record.checksum:
                    raise ChecksumError(
                        f"{path} differs from its checksum at expert {record.expert}: expected {record.checksum}, got "
                        f"{digest.hexdigest()}.",
                        advice="It is damaged: extract the store again.",
                        path=path,
                        expected=record.checksum,
                        got=digest.hexdigest(),
                    )
    except OSError as error:
        raise ReadError(
            f"{path} cannot be read: {error.strerror or error}.",
            advice="Check the disk and its permissions.",
            path=path,
        ) from error
