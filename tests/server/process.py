"""A server as the command line starts it: a process of its own, and what it takes of the machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_URL = re.compile(r"http://[\d.]+:\d+")
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process has of the machine.

    Attributes:
        nbytes: Memory.
        threads: Threads.
        files: Open files and connections.
        seconds: Processor time so far.
    """

    nbytes: int
    threads: int
    files: int
    seconds: float


class Process:
    """``coterie serve``, which listens when this is made.

    Its output goes into a file: a pipe that nobody empties would hold up the server.

    Args:
        *arguments: What stands after ``coterie serve``.
        folder: Where its output goes.
        environment: Variables beside those of this process.
    """

    def __init__(self, *arguments: str, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._log = folder / "stderr"
        self._out = folder / "stdout"
        # torch makes a folder for itself when it is imported.
        own = {"COLUMNS": "200", "TERM": "dumb", "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
        variables = os.environ | own | (environment or {})
        with self._log.open("w") as log, self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coterie", "serve", *arguments, "--port", "0"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=variables, start_new_session=True,
            )  # fmt: skip
        while (found := _URL.search(self.said)) is None:
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        self.url = found.group()
        self.port = int(self.url.rpartition(":")[2])

    @property
    def said(self) -> str:
        """What it has written on stderr so far."""
        return self._log.read_text()

    @property
    def out(self) -> str:
        """What it has written on stdout so far."""
        return self._out.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]

    def ask(self, path: str, value: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def metric(self, name: str) -> float:
        """A figure of ``/metrics``, added up over its labels; 0 where there is none yet."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line))

    def taken(self) -> Taken:
        """What it takes of the machine."""
        folder = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        return Taken(
            nbytes=int(status["VmRSS"].split()[0]) << 10,
            threads=int(status["Threads"]),
            files=sum(1 for _ in (folder / "fd").iterdir()),
            seconds=(int(times[11]) + int(times[12])) / _HERTZ,
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        """Makes sure that nothing of it is left. Harmless where it has ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
