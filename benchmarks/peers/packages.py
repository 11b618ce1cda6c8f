"""Peers that are Python packages, installed beside this environment and not into it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def installed(work: Path, name: str, module: str) -> Path:
    """The directory that holds a package; pip installs it there, without what this environment has already."""
    folder = work / "packages"
    if not (folder / module).exists():
        print(f"Installing {name} into {folder} ...", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), name]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} cannot be installed:\n{done.stderr[-2000:]}")
    return folder
