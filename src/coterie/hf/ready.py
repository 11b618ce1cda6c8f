"""A process that stands ready to run a script, as whoever asks it sees it: :mod:`coterie.hf.ready_process`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct

_PROCESS = Path(__file__).with_name("ready_process.py")
_REQUEST = Struct("<QQQ")
_ANSWER = Struct("<iQ")


class Lost(Exception):
    """The process cannot be asked: it answers somebody else, or is no more."""


class Ready:
    """Such a process. It ends with this one, and when it is :meth:`closed <close>`.

    Args:
        script: What it runs.
        folders: Where the packages are that this imports.
    """

    def __init__(self, script: Path, folders: Sequence[str]) -> None:
        self._asking = threading.Lock()
        self._owner = os.getpid()
        # A group of its own: what takes too long is ended with all that it has begun.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROCESS), str(script), *folders],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is another process's."""
        return self._process.poll() is not None or os.getpid() != self._owner

    def run(self, request: bytes, *, memory: int, seconds: int, wall_seconds: float) -> tuple[int, bytes]:
        """How a fork of it ended, and what that wrote.

        Args:
            request: What it reads.
            memory: Bytes of address space that it may take.
            seconds: Seconds of processor time.
            wall_seconds: Seconds on a clock.

        Raises:
            TimeoutError: If it takes more time.
            Lost: If it cannot be asked now.
        """
        if not self._asking.acquire(blocking=False):
            raise Lost
        try:
            end = time.monotonic() + wall_seconds
            assert self._process.stdin is not None
            self._process.stdin.write(_REQUEST.pack(memory, seconds, len(request)) + request)
            status, length = _ANSWER.unpack(self._read(_ANSWER.size, end))
            return status, self._read(length, end)
        except OSError as error:
            self._kill()
            if isinstance(error, TimeoutError):
                raise
            raise Lost from error
        except BaseException:  # interrupted half-way: what it says next is no answer to what is asked next
            self._kill()
            raise
        finally:
            self._asking.release()

    def close(self) -> None:
        """Ends it. Harmless when repeated."""
        with self._asking:
            self._kill()

    def _read(self, nbytes: int, end: float) -> bytes:
        source = self._process.stdout
        assert source is not None
        waiting = select.poll()
        waiting.register(source, select.POLLIN)
        data = b""
        while len(data) < nbytes:
            if not waiting.poll(max(0.0, 1000 * (end - time.monotonic()))):
                raise TimeoutError
            part = source.read(nbytes - len(data))
            if not part:
                raise Lost
            data += part
        return data

    def _kill(self) -> None:
        if self.is_over:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
