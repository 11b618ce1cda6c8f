"""Runs an engine in a memory cgroup and notes when each piece of its output came, and what it had read by then.

The output is a run of tokens, whose texts all have the same length; nothing else may be printed on standard output.
Time starts when the process is made, so that what comes before the first token (imports, opening, reading weights) is
in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.cgroup import CgroupRun, MemoryCgroup, memory_cgroup

_SAMPLE_S = 0.05
_SECTOR = 512
_ENTER = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class Piece:
    """Output that came at one moment.

    Attributes:
        at_s: Seconds since the process was made.
        text: What came.
        read_bytes: Bytes that its processes had read from disks by then, page faults included.
    """

    at_s: float
    text: str
    read_bytes: int


@dataclass(kw_only=True)
class StreamedRun(CgroupRun):
    """What a command did, held, and when it said what.

    Attributes:
        pieces: Its output.
        read_bytes: Bytes that it read from disks.
        timed_out: Whether it was ended because it took too long.
    """

    pieces: list[Piece] = field(default_factory=list)
    read_bytes: int = 0
    timed_out: bool = False

    def arrivals(self, length: int) -> list[Piece]:
        """The moments at which each text of ``length`` letters was whole, white space left out."""
        found: list[Piece] = []
        pending = ""
        for piece in self.pieces:
            pending += "".join(piece.text.split())
            while len(pending) >= length:
                found.append(Piece(piece.at_s, pending[:length], piece.read_bytes))
                pending = pending[length:]
        return found


def run_streamed(
    command: Sequence[str | Path],
    limit: int | None,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float,
) -> StreamedRun:
    """Runs a command in a memory cgroup of its own until it ends, or for ``timeout_s``; what came until then counts.

    Args:
        command: Program and arguments.
        limit: Bytes, or None for none.
        env: Added to the environment.
        timeout_s: Ends the command after that.

    Raises:
        CgroupUnavailable: If no cgroup can be made.
    """
    run = StreamedRun(limit=limit)
    with memory_cgroup(limit) as cgroup, tempfile.TemporaryFile() as errors:
        entering = ["/bin/sh", "-c", _ENTER, str(cgroup.path / "cgroup.procs"), *map(str, command)]
        began = time.perf_counter()
        process = subprocess.Popen(
            entering, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(env or {})}, bufsize=0
        )
        assert process.stdout is not None
        listener = threading.Thread(target=_listen, args=(process, cgroup, began, run))
        listener.start()
        try:
            _watch(process, cgroup, run, began, timeout_s)
        finally:
            if process.returncode is None:
                _end(cgroup, process)
                _reap(process, run, block=True)
            listener.join()
            process.stdout.close()
        run.seconds = time.perf_counter() - began
        run.usage, run.reclaims, run.oom_kills = cgroup.peak_usage(), cgroup.reclaims(), cgroup.oom_kills()
        errors.seek(0)
        run.stderr = errors.read().decode(errors="replace")
    run.stdout = "".join(piece.text for piece in run.pieces)
    return run


def _watch(
    process: subprocess.Popen[bytes], cgroup: MemoryCgroup, run: StreamedRun, began: float, timeout_s: float
) -> None:
    while not _reap(process, run, block=False):
        run.take(cgroup.processes())
        if time.perf_counter() - began > timeout_s:
            run.timed_out = True
            return
        time.sleep(_SAMPLE_S)


def _reap(process: subprocess.Popen[bytes], run: StreamedRun, *, block: bool) -> bool:
    """Whether the process has ended; the kernel tells what it read in its life only to who waits for it so."""
    pid, status, usage = os.wait4(process.pid, 0 if block else os.WNOHANG)
    if pid == 0:
        return False
    process.returncode = run.returncode = os.waitstatus_to_exitcode(status)
    run.read_bytes = usage.ru_inblock * _SECTOR
    return True


def _end(cgroup: MemoryCgroup, process: subprocess.Popen[bytes]) -> None:
    for each in {*cgroup.processes(), process.pid}:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _listen(process: subprocess.Popen[bytes], cgroup: MemoryCgroup, began: float, run: StreamedRun) -> None:
    assert process.stdout is not None
    while data := os.read(process.stdout.fileno(), 1 << 16):
        at = time.perf_counter() - began
        # A process that has just ended is in no cgroup any more, but its counters stay until it is waited for.
        read = sum(map(_read_bytes, {process.pid, *cgroup.processes()}))
        run.pieces.append(Piece(at, data.decode(errors="replace"), read))


def _read_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0
