"""A file of which only some ranges are here: they are kept as they come, and a list beside it says which."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from coterie.files.regular import read_bounded

_SYNCED = "."
_LARGEST_LIST = 2**26


class SparseFile:
    """A file with holes where nothing came yet. Safe to use from several threads.

    Several processes may keep ranges of one file: whoever keeps a range has the same bytes. The list grows line by
    line, so that a process that is killed loses nothing that was listed. After a power cut the bytes of the last
    ranges may be lost, although the list has them: these are *unsure* until somebody has looked at them.

    Args:
        path: The file; the list's name ends in ``.ranges``.
        nbytes: The size of the whole file.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.list = path.with_name(f"{path.name}.ranges")
        self.nbytes = nbytes
        self._lock = threading.Lock()
        self._offsets: set[int] = set()
        self._unsure: set[int] = set()
        self._read = 0
        self._descriptors: tuple[int, int] | None = None
        self._kept = False
        self.look()

    def look(self) -> None:
        """Learns of ranges that others have kept meanwhile."""
        with self._lock:
            try:
                if self.list.stat().st_size == self._read or self.path.stat().st_size != self.nbytes:
                    return
                data = read_bounded(self.list, _LARGEST_LIST, links=False)
            except OSError:
                return
            self._read = len(data)
            lines = data.decode("ascii", "replace").split("\n")[:-1]
            sure = max((number for number, line in enumerate(lines) if line == _SYNCED), default=-1)
            known = set(self._offsets)
            for number, line in enumerate(lines):
                if line.isdecimal() and len(line) < 20 and int(line) not in known:
                    self._offsets.add(int(line))
                    if number > sure:
                        self._unsure.add(int(line))

    def has(self, offset: int) -> bool:
        """Whether the range that begins here was kept."""
        return offset in self._offsets

    def is_sure(self, offset: int) -> bool:
        """Whether its bytes are as they came, whatever has happened since."""
        return offset in self._offsets and offset not in self._unsure

    def confirm(self, offset: int) -> None:
        """Says that somebody has found its bytes right."""
        self._unsure.discard(offset)

    def forget(self, offset: int) -> None:
        """Says that its bytes are not right."""
        with self._lock:
            self._offsets.discard(offset)
            self._unsure.discard(offset)

    def keep(self, offset: int, data: memoryview) -> None:
        """Keeps a range that has come.

        Raises:
            OSError: If the disk has no room for it, or cannot be written.
        """
        with self._lock:
            if self._descriptors is None:
                self._descriptors = self._open()
            file, listed = self._descriptors
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], offset + done)
            os.write(listed, f"{offset}\n".encode())
            self._offsets.add(offset)
            self._unsure.discard(offset)
            self._kept = True

    def close(self) -> None:
        """Makes what was kept durable. Harmless when repeated."""
        with self._lock:
            if self._descriptors is None:
                return
            file, listed = self._descriptors
            self._descriptors = None
            try:
                with suppress(OSError):
                    os.fsync(file)
                    os.write(listed, f"{_SYNCED}\n".encode())
            finally:
                os.close(file)
                os.close(listed)

    def remove(self) -> None:
        """Removes file and list."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.list.unlink(missing_ok=True)

    def _open(self) -> tuple[int, int]:
        flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | flags, 0o666)
        try:
            if os.fstat(file).st_size != self.nbytes:
                os.ftruncate(file, self.nbytes)
                self.list.unlink(missing_ok=True)
            return file, os.open(self.list, os.O_WRONLY | os.O_APPEND | flags, 0o666)
        except BaseException:
            os.close(file)
            raise
