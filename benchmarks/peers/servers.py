"""Servers of one model: how each is started, in a memory cgroup, and when it can be asked."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.cgroup import CgroupRun, memory_cgroup

_POLL_S = 0.1
_ENTER = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a server is to have room for.

    Attributes:
        limit: Bytes of its memory cgroup; None for all that there is, with the whole model in memory.
        streams: Answers at once.
        context: Tokens of each, prompt included.
    """

    limit: int | None
    streams: int
    context: int


class Server(Protocol):
    """A server that can be started."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def file(self) -> Path:
        """The model."""
        ...

    @property
    def ready(self) -> str:
        """The path that answers 200 once it can be asked."""
        ...

    @property
    def reads_first(self) -> bool:
        """Whether it reads experts when they are asked for, and not when it starts."""
        ...

    def command(self, room: Room, port: int) -> list[str]:
        """Program and arguments."""
        ...


@dataclass(frozen=True)
class CoterieServer:
    """``coterie serve``.

    Attributes:
        file: The model, a store.
        threads: Threads.
    """

    file: Path
    threads: int
    name: str = "coterie serve"
    ready: str = "/readyz"
    reads_first: bool = True

    def command(self, room: Room, port: int) -> list[str]:
        """See :class:`Server`."""
        words: list[object] = [sys.executable, "-m", "coterie", "serve", self.file, "--port", port]
        words += ["--threads", self.threads, "--parallel", room.streams, "--queue", 2 * room.streams]
        words += ["--max-context", room.streams * room.context]
        words += ["--expert-memory", "100%"] if room.limit is None else ["--memory", room.limit]
        return list(map(str, words))


@dataclass(frozen=True)
class LlamaServer:
    """llama.cpp's server.

    Attributes:
        program: The program.
        file: The model, a GGUF file.
        threads: Threads.
    """

    program: Path
    file: Path
    threads: int
    name: str = "llama-server"
    ready: str = "/health"
    reads_first: bool = False

    def command(self, room: Room, port: int) -> list[str]:
        """See :class:`Server`; with all memory, its weights are in the layouts of its fastest kernels."""
        words: list[object] = [self.program, "-m", self.file, "--host", "127.0.0.1", "--port", port]
        words += ["-t", self.threads, "-np", room.streams, "-c", room.streams * room.context, "--cache-ram", 0]
        # Greedy by a sampler that looks at one token only.
        words += ["--samplers", "top_k", "--top-k", 1]
        words += ["--load-mode", "none"] if room.limit is None else ["--load-mode", "mmap", "--no-repack"]
        words += [] if room.limit is None else ["--no-warmup"]
        return list(map(str, words))


@dataclass
class Running:
    """A server that runs.

    Attributes:
        port: Where.
        ready_s: From its start until it could be asked.
        run: What it holds; whole once it has ended.
    """

    port: int
    ready_s: float
    run: CgroupRun = field(repr=False)


@contextlib.contextmanager
def served(server: Server, room: Room, *, path: str, timeout_s: float) -> Iterator[Running]:
    """Starts a server in a memory cgroup of its own; it ends with the context.

    Args:
        server: Which.
        room: What for.
        path: ``PYTHONPATH`` of what is Python.
        timeout_s: How long it may take until it can be asked.

    Raises:
        CgroupUnavailable: If no cgroup can be made.
        SystemExit: If it does not come up.
    """
    with memory_cgroup(room.limit) as cgroup, tempfile.TemporaryFile() as said:
        run, port, over = CgroupRun(limit=room.limit), free_port(), threading.Event()
        entering = ["/bin/sh", "-c", _ENTER, str(cgroup.path / "cgroup.procs"), *server.command(room, port)]
        began = time.perf_counter()
        process = subprocess.Popen(entering, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": path})

        def watch() -> None:
            while not over.wait(_POLL_S):
                run.take(cgroup.processes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            if not until_ready(process, port, server.ready, timeout_s):
                said.seek(0)
                last = said.read().decode(errors="replace")[-3000:]
                raise SystemExit(f"{server.name} did not come up in {timeout_s:g} s:\n{last}")
            yield Running(port, time.perf_counter() - began, run)
        finally:
            end(process)
            over.set()
            watcher.join()
            run.seconds = time.perf_counter() - began
            run.usage, run.reclaims, run.oom_kills = cgroup.peak_usage(), cgroup.reclaims(), cgroup.oom_kills()


def until_ready(process: subprocess.Popen[bytes], port: int, path: str, timeout_s: float) -> bool:
    """Waits until a server can be asked; whether it came to that.

    Args:
        process: The server.
        port: Where it listens.
        path: What answers 200 then.
        timeout_s: How long that may take.
    """
    deadline = time.perf_counter() + timeout_s
    while not _answers(port, path):
        if process.poll() is not None or time.perf_counter() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, politely first."""
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    process.wait()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(port: int, path: str) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        good = connection.getresponse().status == 200
        connection.close()
    except (OSError, http.client.HTTPException):
        return False
    return good
