"""What of a checkpoint's files goes into its fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

from coterie.errors import CheckpointFileError
from coterie.files.json_text import CONFIGURATION
from coterie.files.regular import read_bounded, regular_file

_SAMPLE = 65536


def content_of(path: Path) -> bytes:
    """The whole of a small file.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    try:
        return read_bounded(path, CONFIGURATION.nbytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def samples_of(path: Path) -> bytes:
    """Start, middle and end of a shard, and its size.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    try:
        with regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            parts = []
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                file.seek(start)
                parts.append(file.read(_SAMPLE))
    except OSError as error:
        raise _unreadable(path, error) from error
    return b"".join(parts) + str(size).encode()


def _unreadable(path: Path, error: OSError) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} cannot be read: {error.strerror}.", advice="Check that it is still there.", path=path
    )
