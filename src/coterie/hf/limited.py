"""Has strangers' programs run in processes of their own, within limits: :mod:`coterie.hf.limited_process`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from coterie.errors import InputError

_RUNNER = Path(__file__).with_name("limited_process.py")


class TooLong(Exception):
    """The program took more time than it may; never leaves this package's callers."""


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
    command = [sys.executable, "-I", "-S", str(_RUNNER), str(memory), str(seconds), str(script), *_places(packages)]
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=wall_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise TooLong from error
    if -done.returncode in (signal.SIGKILL, getattr(signal, "SIGXCPU", None)):
        raise TooLong
    return done.stdout


def _places(packages: Sequence[str]) -> list[str]:
    """Folders that packages are in."""
    places = []
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"This needs {package}, which is not installed.", advice=f"pip install {package}")
        places.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(places))
