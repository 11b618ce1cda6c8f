"""What a name may lead to that is no regular file: nobody may wait for it, or read it without end."""

from __future__ import annotations

import os
from pathlib import Path

ODD = {
    "fifo": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
"""Kind → makes one at a path."""

NAMED = {"fifo": "FIFO", "directory": "directory", "device": "device"}
"""Kind → what an error calls it."""


def make_odd(kind: str, path: Path) -> Path:
    """Makes one of :data:`ODD` in the place of the file that is there, if one is; returns its path."""
    path.unlink(missing_ok=True)
    ODD[kind](path)
    return path
