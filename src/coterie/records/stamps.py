"""Whether files are still those that were there before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from coterie.files.regular import open_regular
from coterie.spec import FileStamp


class FileChanged(OSError):
    """A file is not the one, or not in the state, that was looked at before."""

    def __init__(self, path: str | Path, what: str) -> None:
        super().__init__(errno.ESTALE, f"it {what}", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def open_unchanged(path: str | Path, stamp: FileStamp | None, *, flags: int = 0) -> int:
    """Opens a regular file for reading, if it still has this stamp; returns its descriptor.

    What is compared is the file that is open, so nothing can take its place in between.

    Args:
        path: The file.
        stamp: What it was; None if nobody has looked before.
        flags: More flags for the operating system, such as ``O_DIRECT``.

    Raises:
        FileChanged: If it is another file, or has changed.
        OSError: As :func:`coterie.files.regular.open_regular`.
    """
    descriptor = open_regular(path, links=stamp is None or stamp.links, flags=flags)
    try:
        check_unchanged(descriptor, path, stamp)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_unchanged(descriptor: int, path: str | Path, stamp: FileStamp | None) -> None:
    """Compares an open file with its stamp.

    Called after bytes were read, it vouches for them: the time changes before the first byte does.

    Raises:
        FileChanged: If it is another file, or has changed.
    """
    if stamp is None:
        return
    found = os.fstat(descriptor)
    if (
        found.st_mtime_ns != stamp.mtime_ns
        or found.st_size != stamp.nbytes
        or found.st_ino != stamp.inode
        or found.st_dev != stamp.device
    ):
        raise FileChanged(path, stamp.change(FileStamp.of(found)) or "")


def file_stamps(paths: Iterable[Path]) -> dict[Path, FileStamp]:
    """The stamps of those files that are here."""
    return {path: stamp for path in set(paths) if (stamp := _stamp(path)) is not None}


def first_changed(before: Mapping[Path, FileStamp]) -> Path | None:
    """The first of these files, by name, that is gone or has another stamp than before; None if all are as before."""
    return min((path for path, stamp in before.items() if _stamp(path) != stamp), default=None)


def _stamp(path: Path) -> FileStamp | None:
    try:
        return FileStamp.of(path.stat())
    except OSError:
        return None
