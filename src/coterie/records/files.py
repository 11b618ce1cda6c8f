"""Open files for reading at offsets, kept open up to a bound."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

from coterie.records.stamps import check_unchanged, open_unchanged
from coterie.spec import FileStamp

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PAGE = 4096

HAS_PREADV = hasattr(os, "preadv")
"""Whether the platform reads at an offset into a buffer; otherwise files are seeked under a lock."""


class ReadableFile(Protocol):
    """A file that several threads may read at once."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Reads up to ``len(buffer)`` bytes from ``offset``; returns how many, 0 at the end of the file.

        Raises:
            OSError: If they cannot be read, or the file has changed since it was stamped.
        """
        ...

    def drop(self, offset: int, nbytes: int) -> None:
        """Tells the kernel that these bytes need not stay in the page cache."""
        ...

    def size(self) -> int:
        """Bytes in the file now."""
        ...

    def close(self) -> None:
        """Closes it."""
        ...


class PositionedFile:
    """Reads with preadv, with the GIL released.

    Args:
        path: The file.
        direct: Whether it is opened with O_DIRECT.
        stamp: What it has to be, and to stay; None for any regular file.

    Raises:
        OSError: If it cannot be opened, or is another file.
    """

    def __init__(self, path: Path, *, direct: bool, stamp: FileStamp | None = None) -> None:
        self._path = path
        self._stamp = stamp
        self._fd = open_unchanged(path, stamp, flags=_O_DIRECT if direct else 0)
        if not direct and hasattr(os, "posix_fadvise"):
            # Exactly the pages asked for: read-ahead would fetch, and keep, parts of experts that nobody wants.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See :class:`ReadableFile`."""
        count = os.preadv(self._fd, [buffer], offset)
        check_unchanged(self._fd, self._path, self._stamp)
        return count

    def drop(self, offset: int, nbytes: int) -> None:
        """See :class:`ReadableFile`."""
        if hasattr(os, "posix_fadvise"):
            # The kernel drops whole pages only, so the range is widened to them.
            start = offset // _PAGE * _PAGE
            end = -(-(offset + nbytes) // _PAGE) * _PAGE
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def size(self) -> int:
        """See :class:`ReadableFile`."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """See :class:`ReadableFile`."""
        os.close(self._fd)


class SeekingFile:
    """Reads with seek and readinto, one thread at a time: for platforms without preadv.

    Args:
        path: The file.
        stamp: What it has to be, and to stay; None for any regular file.

    Raises:
        OSError: If it cannot be opened, or is another file.
    """

    def __init__(self, path: Path, *, stamp: FileStamp | None = None) -> None:
        self._path = path
        self._stamp = stamp
        self._file = FileIO(open_unchanged(path, stamp), "rb")
        self._lock = threading.Lock()

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See :class:`ReadableFile`."""
        with self._lock:
            self._file.seek(offset)
            count = self._file.readinto(buffer) or 0
            check_unchanged(self._file.fileno(), self._path, self._stamp)
            return count

    def drop(self, offset: int, nbytes: int) -> None:
        """See :class:`ReadableFile`; there is no such call here."""

    def size(self) -> int:
        """See :class:`ReadableFile`."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """See :class:`ReadableFile`."""
        self._file.close()


class SharedFile:
    """An open file and how many readers it has right now."""

    __slots__ = ("file", "readers")

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self.readers = 0


class FileCache:
    """Keeps the most recently used files open.

    Args:
        limit: Files kept open; more are open only while that many are being read at once.
        direct: Whether to try O_DIRECT.
        positioned: Whether to use preadv.
    """

    def __init__(self, *, limit: int = 64, direct: bool = True, positioned: bool = HAS_PREADV) -> None:
        self._limit = limit
        self._direct = direct and positioned and bool(_O_DIRECT)
        self._positioned = positioned
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Path, bool, FileStamp | None], SharedFile] = OrderedDict()
        self._refused: set[Path] = set()
        self._closed = False

    def may_be_direct(self, path: Path) -> bool:
        """Whether O_DIRECT is worth trying: neither switched off nor refused by this file's filesystem before."""
        return self._direct and path not in self._refused

    def refuse_direct(self, path: Path) -> None:
        """Remembers that this file cannot be read with O_DIRECT."""
        with self._lock:
            self._refused.add(path)

    @contextmanager
    def reading(self, path: Path, *, direct: bool = False, stamp: FileStamp | None = None) -> Iterator[ReadableFile]:
        """The open file; it stays open for the length of the context.

        Raises:
            OSError: If it cannot be opened, or has another stamp; EINVAL with ``direct`` where the filesystem has no
                O_DIRECT.
        """
        shared = self.take(path, direct=direct, stamp=stamp)
        try:
            yield shared.file
        finally:
            self.give_back(shared)

    def take(self, path: Path, *, direct: bool = False, stamp: FileStamp | None = None) -> SharedFile:
        """The open file; it stays open until it is given back. Raises as :meth:`reading`."""
        name = (path, direct, stamp)
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the reader is closed", str(path))
            shared = self._open.get(name)
            if shared is None:
                if self._positioned:
                    file: ReadableFile = PositionedFile(path, direct=direct, stamp=stamp)
                else:
                    file = SeekingFile(path, stamp=stamp)
                shared = self._open[name] = SharedFile(file)
            self._open.move_to_end(name)
            shared.readers += 1
            surplus = self._surplus()
        self._close_all(surplus)
        return shared

    def give_back(self, shared: SharedFile) -> None:
        """Ends what :meth:`take` began."""
        with self._lock:
            shared.readers -= 1
            surplus = self._surplus()
        self._close_all(surplus)

    def close(self) -> None:
        """Closes the files; those that are being read close when that read ends."""
        with self._lock:
            self._closed = True
            surplus = self._surplus()
        self._close_all(surplus)

    @property
    def open_count(self) -> int:
        """Files open now."""
        return len(self._open)

    def _surplus(self) -> list[ReadableFile]:
        limit = 0 if self._closed else self._limit
        if len(self._open) <= limit:
            return []
        files: list[ReadableFile] = []
        for name in [name for name, shared in self._open.items() if not shared.readers]:
            if len(self._open) <= limit:
                break
            files.append(self._open.pop(name).file)
        return files

    @staticmethod
    def _close_all(files: list[ReadableFile]) -> None:
        for file in files:
            file.close()
