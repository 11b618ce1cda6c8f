"""The files that a package index gets, made once, and environments with nothing of this one but its packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAKER = "COTERIE_WHEELS_PYTHON"
"""Environment variable: a Python with requirements-wheels.lock. `make test-slow` sets it, and makes the environment."""


class Wheels:
    """What ``scripts/wheels.py`` made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.pure,) = folder.glob("*-py3-none-any.whl")
        (self.x86_64,) = folder.glob("*-py3-none-manylinux_*_x86_64.whl")
        (self.aarch64,) = folder.glob("*-py3-none-manylinux_*_aarch64.whl")

    @property
    def of_this_machine(self) -> Path:
        """The one with a native library for it."""
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            pytest.skip("there is no wheel with a native library for this machine")
        found: Path = getattr(self, platform.machine())
        return found


class Bare:
    """An environment with one wheel, and the packages that it needs from here. No compiler is on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def run(self, *command: str, cwd: Path | None = None, code: int = 0) -> str:
        """What a command of the environment prints.

        Args:
            command: The first word is looked for in the environment.
            cwd: Where it runs.
            code: How it must end.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COTERIE_", "PYTHON", "CC"))}
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            env={**kept, "PATH": str(self.folder / "bin"), "COLUMNS": "200"},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


def pip(*arguments: str) -> str:
    """Runs pip without an index."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wheels]:
    python = os.environ.get(MAKER)
    if python is None:
        pytest.skip(f"{MAKER} names no Python with requirements-wheels.lock: `make test-slow` does")
    folder = tmp_path_factory.mktemp("wheels")
    command = [python, str(ROOT / "scripts" / "wheels.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield Wheels(folder)
    # pytest would keep those of three sessions.
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Bare]]:
    """Gives an environment with a wheel in it: ``bare(wheel)``."""
    made = []

    def make(wheel: Path) -> Bare:
        folder = tmp_path_factory.mktemp("bare")
        made.append(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        pip("--python", str(folder / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel))
        subprocess.run([sys.executable, str(ROOT / "scripts" / "borrow.py"), str(folder)], check=True)
        return Bare(folder)

    yield make
    for folder in made:
        shutil.rmtree(folder)
