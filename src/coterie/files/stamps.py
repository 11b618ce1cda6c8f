"""Whether files are still those that were there before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


def file_stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """The stamps of those files that are here."""
    return {path: stamp for path in set(paths) if (stamp := _stamp(path)) is not None}


def first_changed(before: Mapping[Path, Stamp]) -> Path | None:
    """The first of these files, by name, that is gone or has another stamp than before; None if all are as before."""
    return min((path for path, stamp in before.items() if _stamp(path) != stamp), default=None)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
