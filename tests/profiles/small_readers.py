"""Processes with one gibibyte that read what strangers made.

All of a module's are forked from one that has imported what they need and has read nothing: that takes most of a
second. Each begins as small as that one is, and its peak is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_FORKING = """
import io, json, os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
from contextlib import redirect_stdout
from coterie.errors import ProfileError
from coterie.profiles import ProfileDatabase, RemoteProfile, sync
{read}
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        with redirect_stdout(io.StringIO()) as said:
            read(*json.loads(line))
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        print(json.dumps([0, said.getvalue(), peak]), flush=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        print(json.dumps([code, "", 0]), flush=True)
"""


class Outcome(NamedTuple):
    """What became of a process: its exit code, what it printed, and its peak in KiB."""

    code: int
    out: str
    peak: int


class SmallReaders:
    """Runs one process after the other; a traceback goes to stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *arguments: str) -> Outcome:
        """What ``read(*arguments)`` does in a process of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))


@contextmanager
def small_readers(read: str) -> Iterator[SmallReaders]:
    """Processes that run a function.

    Args:
        read: The source of ``read``; the names of ``coterie.profiles`` that reading takes are there.
    """
    command = [sys.executable, "-c", _FORKING.replace("{read}", read)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"OMP_NUM_THREADS": "1", "PATH": ""}
    ) as process:
        try:
            yield SmallReaders(process)
        finally:
            process.kill()
