"""The one seam through which a writer changes the disk: every call here can fail, and tests make each of them fail.

The methods raise plain :class:`OSError`; :mod:`coterie.store.disk` turns that into errors that say what to do.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coterie.errors import StoreBusyError

_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start writing, do not wait
_SYNC_WAIT = 1 | 2 | 4  # WAIT_BEFORE | WRITE | WAIT_AFTER: on disk when it returns (data only)
_O_BINARY = getattr(os, "O_BINARY", 0)
_O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class SystemCalls:
    """Calls that change files. Offsets and sizes in bytes; safe to call from several threads."""

    def mkdir(self, path: Path) -> None:
        """Creates one directory."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Removes one empty directory."""
        path.rmdir()

    def create(self, path: Path) -> int:
        """Opens an empty file for reading and writing, truncating what was there; returns the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _O_BINARY | _O_CLOEXEC | _O_NOFOLLOW, 0o666)

    def create_own(self, path: Path) -> int:
        """Opens a new file that only this user may read, locked as :meth:`lock` does: others see that it is written.

        Raises:
            FileExistsError: If anything has that name, a link included.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY | _O_CLOEXEC | _O_NOFOLLOW, 0o600)
        try:
            _lock(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open(self, path: Path) -> int:
        """Opens a file for reading and writing, creating it if need be; returns the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | _O_BINARY | _O_CLOEXEC | _O_NOFOLLOW, 0o666)

    def open_direct(self, path: Path) -> int | None:
        """Opens a file for writing past the page cache; None where the system or the file system has no such thing."""
        if not _O_DIRECT:
            return None
        try:
            return os.open(path, os.O_WRONLY | _O_DIRECT | _O_CLOEXEC | _O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return None
            raise

    def lock(self, fd: int) -> None:
        """Takes an exclusive lock that ends with the process.

        Raises:
            StoreBusyError: If another open descriptor holds it.
        """
        _lock(fd)

    def allocate(self, fd: int, nbytes: int) -> None:
        """Gives the file this size, reserving the space where the file system can (``ENOSPC`` comes now, not later)."""
        allocate = _libc_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if allocate is not None and nbytes:
            # The C library's posix_fallocate would write every block where this is not supported; plain truncation
            # costs nothing there.
            if allocate(fd, 0, 0, nbytes) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise OSError(code, os.strerror(code))
        os.ftruncate(fd, nbytes)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cuts the file to this size."""
        os.ftruncate(fd, nbytes)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Writes at an offset; returns how many bytes were written, possibly fewer than asked for."""
        return _pwrite(fd, data, offset)

    def start_writeback(self, fd: int, offset: int, nbytes: int) -> None:
        """Asks the kernel to begin writing a range to the disk, without waiting."""
        _sync_range(fd, offset, nbytes, _SYNC_WRITE)

    def finish_writeback(self, fd: int, offset: int, nbytes: int) -> None:
        """Waits until a range is on the disk and drops it from the page cache."""
        _sync_range(fd, offset, nbytes, _SYNC_WAIT)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def sync(self, fd: int) -> None:
        """Makes a file's bytes and size durable."""
        os.fsync(fd)

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        if sys.platform == "win32":
            return  # Directories cannot be opened there; NTFS journals names by itself.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Renames within a directory, replacing what was there in one step."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Removes a file; it is no error if it is gone."""
        path.unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt
    import threading

    _seek_lock = threading.Lock()

    def _lock(fd: int) -> None:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise StoreBusyError("The lock is held by another process.") from error

    def _pwrite(fd: int, data: memoryview, offset: int) -> int:
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)

else:
    import fcntl

    def _lock(fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusyError("The lock is held by another process.") from error

    def _pwrite(fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)


@functools.cache
def _libc_function(name: str, *argument_types: Any) -> Callable[..., int] | None:
    """A function of the C library on Linux, or None elsewhere."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return None
    function.argtypes = argument_types
    function.restype = ctypes.c_int
    result: Callable[..., int] = function
    return result


def _sync_range(fd: int, offset: int, nbytes: int, flags: int) -> None:
    sync = _libc_function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if sync is None or sync(fd, offset, nbytes, flags) == 0:
        return
    code = ctypes.get_errno()
    # Only a hint about when; fsync before the rename is what makes the bytes durable.
    if code not in (errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code))
