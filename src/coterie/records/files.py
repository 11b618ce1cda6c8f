"""Files of this machine as what bytes come from: those that were looked at before, and no others."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from coterie.files.regular import open_regular
from coterie.spec import Access, ByteSource, FileStamp, OpenBytes

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PAGE = 4096
_ADVISES = hasattr(os, "posix_fadvise")

HAS_PREADV = hasattr(os, "preadv")
"""Whether the platform reads at an offset into a buffer; otherwise files are seeked under a lock."""
HAS_DIRECT = HAS_PREADV and bool(_O_DIRECT)
"""Whether the platform reads past its page cache, on file systems that can."""


class FileChanged(OSError):
    """A file is not the one, or not in the state, that was looked at before."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.ESTALE, f"it {what}", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine; a :class:`~coterie.spec.ByteSource`.

    What is compared with the stamp is the file that is open, so nothing can take its place in between. It is compared
    again after every read, which vouches for the bytes: a write changes the time of modification before the first byte.

    Attributes:
        path: The file.
        stamp: What it has to be, and to stay; None for any regular file.
    """

    path: Path
    stamp: FileStamp | None = None

    @property
    def place(self) -> Path:
        """See :class:`~coterie.spec.ByteSource`."""
        return self.path

    @property
    def distant(self) -> bool:
        """See :class:`~coterie.spec.ByteSource`."""
        return False

    def open(self, access: Access) -> OpenBytes:
        """See :class:`~coterie.spec.ByteSource`.

        Raises:
            FileChanged: If it is another file, or has changed.
            OSError: As :func:`coterie.files.regular.open_regular`.
        """
        if access == "direct" and not HAS_DIRECT:
            raise OSError(errno.EINVAL, "there are no direct reads here", str(self.path))
        links = self.stamp is None or self.stamp.links
        descriptor = open_regular(self.path, links=links, flags=_O_DIRECT if access == "direct" else 0)
        try:
            self.check(descriptor)
            if access == "scattered" and _ADVISES:
                # Exactly the pages asked for: read-ahead would fetch, and keep, parts of experts that nobody wants.
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        except BaseException:
            os.close(descriptor)
            raise
        return PositionedFile(self, descriptor) if HAS_PREADV else SeekingFile(self, descriptor)

    def check(self, descriptor: int) -> None:
        """Compares an open file with the stamp.

        Raises:
            FileChanged: If it is another file, or has changed.
        """
        stamp = self.stamp
        if stamp is None:
            return
        found = os.fstat(descriptor)
        if (
            found.st_mtime_ns != stamp.mtime_ns
            or found.st_size != stamp.nbytes
            or found.st_ino != stamp.inode
            or found.st_dev != stamp.device
        ):
            raise FileChanged(self.path, stamp.change(FileStamp.of(found)) or "")


class PositionedFile:
    """Reads with preadv, with the GIL released; an :class:`~coterie.spec.OpenBytes`.

    Args:
        file: Which file it is.
        descriptor: The file, open; it is closed with this.
    """

    def __init__(self, file: LocalFile, descriptor: int) -> None:
        self._file = file
        self._fd = descriptor

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See :class:`~coterie.spec.OpenBytes`."""
        count = os.preadv(self._fd, [buffer], offset)
        self._file.check(self._fd)
        return count

    def will_read(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`."""
        self._advise(offset, nbytes, "WILLNEED")

    def drop(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`."""
        self._advise(offset, nbytes, "DONTNEED")

    def size(self) -> int:
        """See :class:`~coterie.spec.OpenBytes`."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """See :class:`~coterie.spec.OpenBytes`."""
        os.close(self._fd)

    def _advise(self, offset: int, nbytes: int, advice: str) -> None:
        if _ADVISES and nbytes > 0:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, nbytes, getattr(os, f"POSIX_FADV_{advice}"))


class SeekingFile:
    """Reads with seek and readinto, one thread at a time: for platforms without preadv.

    Args:
        file: Which file it is.
        descriptor: The file, open; it is closed with this.
    """

    def __init__(self, file: LocalFile, descriptor: int) -> None:
        self._file = file
        self._stream = FileIO(descriptor, "rb")
        self._lock = threading.Lock()

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See :class:`~coterie.spec.OpenBytes`."""
        with self._lock:
            self._stream.seek(offset)
            count = self._stream.readinto(buffer) or 0
            self._file.check(self._stream.fileno())
            return count

    def will_read(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`; there is no such call here."""

    def drop(self, offset: int, nbytes: int) -> None:
        """See :class:`~coterie.spec.OpenBytes`; there is no such call here."""

    def size(self) -> int:
        """See :class:`~coterie.spec.OpenBytes`."""
        return os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        """See :class:`~coterie.spec.OpenBytes`."""
        self._stream.close()


class SharedBytes:
    """Open bytes and how many readers they have right now."""

    __slots__ = ("file", "readers")

    def __init__(self, file: OpenBytes) -> None:
        self.file = file
        self.readers = 0


class FileCache:
    """Keeps open what was read from last.

    Args:
        limit: Files kept open; more are open only while that many are being read at once.
        direct: Whether to try direct reads.
    """

    def __init__(self, *, limit: int = 64, direct: bool = True) -> None:
        self._limit = limit
        self._direct = direct and HAS_DIRECT
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[ByteSource, Access], SharedBytes] = OrderedDict()
        self._refused: set[ByteSource] = set()
        self._closed = False

    def may_be_direct(self, source: ByteSource) -> bool:
        """Whether direct reads are worth trying: neither switched off nor refused before."""
        return self._direct and not (self._refused and source in self._refused)

    def refuse_direct(self, source: ByteSource) -> None:
        """Remembers that this cannot be read directly."""
        with self._lock:
            self._refused.add(source)

    @contextmanager
    def reading(self, source: ByteSource, access: Access = "scattered") -> Iterator[OpenBytes]:
        """The open file; it stays open for the length of the context. Raises as :meth:`ByteSource.open`."""
        shared = self.take(source, access)
        try:
            yield shared.file
        finally:
            self.give_back(shared)

    def take(self, source: ByteSource, access: Access) -> SharedBytes:
        """The open file; it stays open until it is given back. Raises as :meth:`ByteSource.open`."""
        name = (source, access)
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the reader is closed", str(source.place))
            shared = self._open.get(name)
            if shared is None:
                shared = self._open[name] = SharedBytes(source.open(access))
            self._open.move_to_end(name)
            shared.readers += 1
            surplus = self._surplus()
        self._close_all(surplus)
        return shared

    def give_back(self, shared: SharedBytes) -> None:
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

    def _surplus(self) -> list[OpenBytes]:
        limit = 0 if self._closed else self._limit
        if len(self._open) <= limit:
            return []
        files: list[OpenBytes] = []
        for name in [name for name, shared in self._open.items() if not shared.readers]:
            if len(self._open) <= limit:
                break
            files.append(self._open.pop(name).file)
        return files

    @staticmethod
    def _close_all(files: list[OpenBytes]) -> None:
        for file in files:
            file.close()


def pages_around(offset: int, nbytes: int) -> tuple[int, int]:
    """Offset and number of bytes of the whole pages that these bytes lie in."""
    start = offset // _PAGE * _PAGE
    return start, -(-(offset + nbytes) // _PAGE) * _PAGE - start


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
