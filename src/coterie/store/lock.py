"""One writer per store: a lock file that a crash cannot leave locked."""

from __future__ import annotations

import os
from contextlib import suppress

from coterie.errors import StoreBusyError, StoreError
from coterie.store import names
from coterie.store.disk import Disk, explained
from coterie.store.from_hub import blobs_of


class WriterLock:
    """Holds the lock of a store's directory until :meth:`release`.

    The kernel drops the lock when the process dies, so a left-over lock file never blocks anybody.

    Raises:
        StoreBusyError: If another writer holds it; names its process id.
        StoreError: If the lock file cannot be made, or the store is in the Hub's cache.
    """

    def __init__(self, disk: Disk) -> None:
        if blobs_of(disk.root) is not None:
            raise StoreError(
                f"{disk.root} is in the Hub's cache, where a store stays as it was published.",
                advice="Download it into a directory of your own with `hf download ID --local-dir DIR`, and use that.",
                path=disk.root,
            )
        self._disk = disk
        self._path = disk.path(names.LOCK)
        self._fd: int | None = None
        while self._fd is None:
            self._fd = self._try()

    def _try(self) -> int | None:
        """The locked descriptor, or None if the file was replaced between opening and locking it."""
        with explained(self._path):
            fd = self._disk.calls.open(self._path)
            try:
                try:
                    self._disk.calls.lock(fd)
                except StoreBusyError:
                    raise self._busy(fd) from None
                if not self._is_current(fd):
                    os.close(fd)
                    return None
                self._disk.calls.truncate(fd, 0)
                self._disk.calls.write(fd, memoryview(f"{os.getpid()}\n".encode()), 0)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def _is_current(self, fd: int) -> bool:
        """A releasing writer unlinks the file: a lock on the unlinked one protects nothing."""
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def _busy(self, fd: int) -> StoreBusyError:
        with suppress(OSError):
            os.lseek(fd, 0, os.SEEK_SET)
        try:
            owner = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        except OSError:
            owner = "unknown"
        return StoreBusyError(
            f"{self._disk.root} is being written by another process (id {owner}).",
            advice="Wait until it has finished, or stop it; what it has finished is kept.",
            path=self._disk.root,
            pid=owner,
        )

    def release(self) -> None:
        """Removes the lock file and lets others in; calling it again does nothing."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            with explained(self._path):
                self._disk.calls.unlink(self._path)
                self._disk.calls.sync_directory(self._path.parent)
        finally:
            os.close(fd)
