"""The directory that is there, where one is asked about that may not be: what its disk has is what the other will."""

from __future__ import annotations

from pathlib import Path


def nearest_directory(path: Path) -> Path:
    """The path, or else the nearest directory above it that exists."""
    path = path.expanduser().absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
