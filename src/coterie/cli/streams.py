"""The program's output streams, which may be closed, full, or have nobody who reads them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STDOUT = "<stdout>"
"""The file name of errors that come from writing to it."""


class _NamedOutput(io.FileIO):
    """Writes to a descriptor that stays open; its errors say where they come from."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, ``sys.stdout`` tells its errors from those of other files, and ``sys.stderr`` is never None.

    Raises:
        OSError: At the beginning, if stdout is closed.
    """
    if sys.stderr is None:
        # Whoever closed it wants to hear nothing.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", STDOUT)
    before = sys.stdout
    if before is not sys.__stdout__ or not isinstance(before, io.TextIOWrapper):
        yield  # somebody collects what is printed
        return
    before.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_NamedOutput(before.fileno(), "wb", closefd=False)),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    try:
        yield
    finally:
        settle_output()
        sys.stdout = before


def settle_output() -> None:
    """Writes what waits for stdout; if that cannot be, lets it go nowhere, so that nobody tries again at the exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # a stream without a descriptor: nothing is written at the exit either
