"""Durable changes to a store's directory, with errors that name the file and say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coterie.errors import DiskSpaceError, StoreError
from coterie.files.nearest import nearest_directory
from coterie.spec import RECORD_ALIGNMENT, format_bytes
from coterie.store import names
from coterie.store.syscalls import SystemCalls

DIRECT_BYTES = 8 * 2**20
"""Files smaller than this are written through the page cache; opening them twice costs more than it saves."""

WRITEBACK_WINDOW = 64 * 2**20
"""Written bytes per file that may wait for the disk: enough to keep it busy, little beside a memory limit."""


class Disk:
    """Creates, replaces and removes files below one directory so that a crash at any moment leaves whole files.

    Args:
        root: The store's directory.
        calls: The system calls; tests pass one that fails.
    """

    def __init__(self, root: Path, calls: SystemCalls | None = None) -> None:
        self.root = root
        self.calls = calls or SystemCalls()

    def path(self, name: str) -> Path:
        """The file of this relative name."""
        return self.root / name

    def partial(self, name: str) -> Path:
        """Where a file of this relative name is written until it is whole."""
        return self.path(names.partial_file(name))

    def create(self, path: Path) -> int:
        """Opens an empty file, as :meth:`~coterie.store.syscalls.SystemCalls.create`."""
        return self.calls.create(path)

    def make_directory(self, path: Path) -> None:
        """Creates a directory and its missing parents durably."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        with explained(path):
            try:
                self.calls.mkdir(path)
            except FileExistsError:
                if not path.is_dir():
                    raise
            self.calls.sync_directory(path.parent)

    def begin(self, name: str, nbytes: int, *, direct: bool = False) -> NewFile:
        """Starts a file of known size under its temporary name.

        Args:
            name: Its final relative name.
            nbytes: Its size.
            direct: Most of it will be written in whole pages from page-aligned memory: worth doing past the page cache.

        Raises:
            DiskSpaceError: If it does not fit.
            StoreError: If it cannot be created.
        """
        self.make_directory(self.path(name).parent)
        return NewFile(self, name, nbytes, direct=direct and nbytes >= DIRECT_BYTES)

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a small file in one step."""
        with self.begin(name, len(data)) as file:
            file.write(memoryview(data), 0)
            file.publish()

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        path = self.path(name)
        with explained(path):
            self.calls.unlink(path)

    def remove_empty_directory(self, path: Path) -> None:
        """Removes a directory if nothing is in it."""
        if path.is_dir() and not any(path.iterdir()):
            with explained(path):
                self.calls.rmdir(path)

    def sync(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        with explained(path):
            self.calls.sync_directory(path)


class NewFile:
    """A file that becomes visible under its name only by :meth:`publish`, whole and on the disk.

    Several threads may write different ranges. What is written is pushed to the disk early and dropped from the page
    cache, so that gigabytes of dirty pages never pile up (small memory cgroups throttle or kill over them).
    Used as a context manager it removes the temporary file unless it was published.
    """

    def __init__(self, disk: Disk, name: str, nbytes: int, *, direct: bool = False) -> None:
        self.nbytes = nbytes
        self._disk = disk
        self._target = disk.path(name)
        self._partial = disk.partial(name)
        self._lock = threading.Lock()
        self._pending: deque[tuple[int, int]] = deque()
        self._pending_bytes = 0
        self._fd: int | None = None
        self._direct_fd: int | None = None
        self._is_direct = direct
        with explained(self._target, nbytes):
            self._fd = disk.create(self._partial)
            try:
                disk.calls.allocate(self._fd, nbytes)
                if direct:
                    self._direct_fd = disk.calls.open_direct(self._partial)
            except OSError:
                self.close()
                raise

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, data: memoryview, offset: int, *, direct: bool = False) -> None:
        """Writes bytes at an offset; with ``direct`` past the page cache, where file and memory allow it."""
        fd = self._open_fd()
        view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
        with explained(self._target, self.nbytes):
            done = self._write_direct(view, offset) if direct else 0
            if done == len(view):
                return
            begin = done
            while done < len(view):
                written = self._disk.calls.write(fd, view[done:], offset + done)
                if written <= 0:
                    raise OSError(errno.EIO, "the file system accepted no bytes")
                done += written
            self._push(fd, offset + begin, len(view) - begin)

    def _write_direct(self, view: memoryview, offset: int) -> int:
        """Writes whole pages past the page cache as far as that works; returns the bytes written."""
        done = 0
        if self._direct_fd is None or offset % RECORD_ALIGNMENT or len(view) % RECORD_ALIGNMENT:
            return 0
        while self._is_direct and done < len(view):
            try:
                written = self._disk.calls.write(self._direct_fd, view[done:], offset + done)
            except OSError as error:
                # The memory is not aligned, or the file system has another block size.
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False
                break
            done += written
            if written <= 0 or written % RECORD_ALIGNMENT:
                self._is_direct = False
        return done

    def _push(self, fd: int, offset: int, nbytes: int) -> None:
        """Starts writing a range to the disk and waits for the oldest ones while too many are under way."""
        self._disk.calls.start_writeback(fd, offset, nbytes)
        with self._lock:
            self._pending.append((offset, nbytes))
            self._pending_bytes += nbytes
        while True:
            with self._lock:
                if self._pending_bytes <= WRITEBACK_WINDOW:
                    return
                oldest = self._pending.popleft()
                self._pending_bytes -= oldest[1]
            self._disk.calls.finish_writeback(fd, *oldest)

    def publish(self) -> None:
        """Makes the bytes durable, gives the file its name, makes the name durable."""
        fd = self._open_fd()
        with explained(self._target, self.nbytes):
            self._disk.calls.sync(fd)
            for offset, nbytes in self._pending:
                self._disk.calls.finish_writeback(fd, offset, nbytes)
            self._pending.clear()
            self._close_descriptors()
            self._disk.calls.rename(self._partial, self._target)
            self._disk.calls.sync_directory(self._target.parent)

    def close(self) -> None:
        """Ends the file; one that was not published is removed."""
        if self._fd is None:
            return
        self._close_descriptors()
        # The next writer removes what cannot be removed now; the error that led here matters more.
        with suppress(OSError):
            self._disk.calls.unlink(self._partial)

    def _close_descriptors(self) -> None:
        for descriptor in (self._fd, self._direct_fd):
            if descriptor is not None:
                os.close(descriptor)
        self._fd = self._direct_fd = None

    def _open_fd(self) -> int:
        if self._fd is None:
            raise StoreError(f"{self._target} is no longer being written.", path=self._target)
        return self._fd


@contextmanager
def explained(path: Path, nbytes: int = 0) -> Iterator[None]:
    """Turns the operating system's errors into ours.

    Args:
        path: What is being written, for messages.
        nbytes: Bytes that it needs.

    Raises:
        DiskSpaceError: If the file system, or the user's quota, is full.
        StoreError: For every other failure.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(path)
            raise DiskSpaceError(
                f"{path}: no space is left ({reason}); the file needs {format_bytes(nbytes)}, {free} are free.",
                advice="Free space on that disk, then run the same command again: what is finished is kept.",
                path=path,
                needed=nbytes,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"Make {path.parent} writable for this user, or choose another directory."
        else:
            advice = "Check the disk, then run the same command again: what is finished is kept."
        raise StoreError(f"{path} cannot be written: {reason}.", advice=advice, path=path, errno=error.errno) from error


def _free_bytes(path: Path) -> str:
    try:
        return format_bytes(shutil.disk_usage(nearest_directory(path)).free)
    except OSError:
        return "an unknown number of bytes"
