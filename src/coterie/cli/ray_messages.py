"""Keeps off the terminal what Ray prints by itself: on stdout, whatever it is told of logs."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


@contextmanager
def without_ray_messages() -> Iterator[None]:
    """Inside, threads of Ray's print nothing. That a worker was lost is told as a remark, and once."""
    with redirect_stdout(_WithoutRay(sys.stdout)):
        yield


class _WithoutRay(io.TextIOBase):
    """A stdout for all but threads of Ray's, which say there what became of processes."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        """Writes what is somebody else's."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stdout.write(text)

    def flush(self) -> None:
        """As of the stdout itself."""
        self._stdout.flush()

    def isatty(self) -> bool:
        """As of the stdout itself."""
        return self._stdout.isatty()

    def fileno(self) -> int:
        """As of the stdout itself."""
        return self._stdout.fileno()
