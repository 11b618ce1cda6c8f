"""Has strangers' programs run in processes of their own, within limits: :mod:`coterie.hf.limited_process`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from coterie.errors import InputError
from coterie.hf.ready import Lost, Ready

_RUNNER = Path(__file__).with_name("limited_process.py")
_kept: dict[Path, Ready] = {}
"""Script → the process that stands ready to run it, while somebody keeps such processes."""
_keepers = 0
_keeping = threading.Lock()


class TooLong(Exception):
    """The program took more time than it may; never leaves this package's callers."""


@contextmanager
def kept_ready() -> Iterator[None]:
    """Inside, what is run time and again is run by forks of a process that stands ready: in milliseconds, not tenths.

    It is for whoever serves many. Where processes cannot fork, nothing is different.
    """
    global _keepers
    with _keeping:
        _keepers += 1
    try:
        yield
    finally:
        with _keeping:
            _keepers -= 1
            ended = [] if _keepers else [_kept.pop(script) for script in tuple(_kept)]
        for one in ended:
            one.close()


def run_limited(
    script: Path, request: bytes, packages: Sequence[str], *, memory: int, seconds: int, wall_seconds: float
) -> bytes:
    """Runs a script and returns what it writes.

    Args:
        script: The script, which reads stdin and writes to stdout.
        request: What it reads.
        packages: What it imports.
        memory: Bytes of address space that it may take.
        seconds: Seconds of processor time.
        wall_seconds: Seconds on a clock.

    Raises:
        TooLong: If it takes more time.
        InputError: If a package is not installed.
    """
    command = _command(script, packages, memory, seconds)
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=wall_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise TooLong from error
    return _written(done.returncode, done.stdout)


def start_limited(
    script: Path, packages: Sequence[str], *, memory: int, seconds: int, files: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts a script that is talked to through its stdin and stdout; whoever asked ends it.

    Args:
        script: The script.
        packages: What it imports.
        memory: Bytes of address space that it may take.
        seconds: Seconds of processor time.
        files: Descriptors of open files that it has, too, by the same numbers.

    Raises:
        InputError: If a package is not installed.
    """
    return subprocess.Popen(
        _command(script, packages, memory, seconds),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(files),
    )


def _command(script: Path, packages: Sequence[str], memory: int, seconds: int) -> list[str]:
    return [sys.executable, "-I", "-S", str(_RUNNER), str(memory), str(seconds), str(script), *_places(packages)]


def run_limited_often(
    script: Path, request: bytes, packages: Sequence[str], *, memory: int, seconds: int, wall_seconds: float
) -> bytes:
    """As :func:`run_limited`, of a script that has ``prepare`` and ``answer``; sooner, inside :func:`kept_ready`."""
    ready = _ready(script, packages)
    if ready is not None:
        try:
            return _written(*ready.run(request, memory=memory, seconds=seconds, wall_seconds=wall_seconds))
        except TimeoutError as error:
            raise TooLong from error
        except Lost:
            pass  # it is asked by another one, or has been killed
    return run_limited(script, request, packages, memory=memory, seconds=seconds, wall_seconds=wall_seconds)


def _ready(script: Path, packages: Sequence[str]) -> Ready | None:
    if not _keepers or not hasattr(os, "fork"):
        return None
    with _keeping:
        found = _kept.get(script)
        if _keepers and (found is None or found.is_over):
            found = _kept[script] = Ready(script, _places(packages))
        return found


def _written(status: int, written: bytes) -> bytes:
    if -status in (signal.SIGKILL, getattr(signal, "SIGXCPU", None)):
        raise TooLong
    return written


def _places(packages: Sequence[str]) -> list[str]:
    """Folders that packages are in."""
    places = []
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"This needs {package}, which is not installed.", advice=f"pip install {package}")
        places.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(places))
