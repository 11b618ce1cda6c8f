"""Trees of earlier commits, to be measured beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def checked_out(revision: str, work: Path) -> Path:
    """A tree of another commit, with its native library.

    Args:
        revision: The commit.
        work: Directory that the tree goes to.

    Raises:
        SystemExit: If there is no such commit, or its native library cannot be built.
    """
    name = _git("rev-parse", "--short", f"{revision}^{{commit}}")
    tree = work / f"tree-{name}"
    if not tree.exists():
        _git("worktree", "add", "--detach", str(tree), name)
    build = [sys.executable, "-m", "coterie.native.build"]
    if subprocess.run(build, check=False, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree / "src")}).returncode:
        raise SystemExit(f"The native library of {revision} cannot be built.")
    return tree


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()
