"""Opening files whose kind is not known: regular ones only, without waiting, and no more of them than was asked for."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: str | Path, *, links: bool = True, flags: int = 0) -> int:
    """Opens a regular file for reading and returns its descriptor; whoever asked closes it.

    A FIFO is not waited for and a device is not read: what the path names is found out after it is open, so nothing can
    take its place in between.

    Args:
        path: The file.
        links: Whether the last part of the path may be a symbolic link.
        flags: More flags for the operating system, such as ``O_DIRECT``.

    Raises:
        IsADirectoryError: If it is a directory.
        OSError: If it cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, _FLAGS | flags | (0 if links else _NO_LINKS))
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise OSError(errno.ELOOP, "a symbolic link, not a regular file", str(path)) from error
        raise
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "this is not a name of a file", str(path)) from error
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
            raise OSError(number, f"{_name_of(kind)}, not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def regular_file(path: str | Path, *, links: bool = True) -> BufferedReader:
    """Opens a regular file as a binary stream. Raises as :func:`open_regular`."""
    return os.fdopen(open_regular(path, links=links), "rb")


def read_bounded(path: str | Path, limit: int, *, links: bool = True) -> bytes:
    """Reads a regular file whole, if it has at most ``limit`` bytes.

    Raises:
        OSError: As :func:`open_regular`, or if the file is larger.
    """
    with regular_file(path, links=links) as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else b""
        if len(data) > limit or os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"more than the limit of {limit:,} bytes", str(path))
    return data


def _name_of(mode: int) -> str:
    names = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in names if test(mode)), "a device")
