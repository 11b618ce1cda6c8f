"""What is below a directory, however odd it is: links are not followed, and no depth ends in a recursion."""

from __future__ import annotations

import os
from pathlib import Path

DEPTH = 32
"""Directories within directories that are looked into; what is deeper is named by its directory alone."""


def files_below(root: Path) -> list[str]:
    """Relative names, with slashes, of all that is no directory below a directory, in the order of paths.

    A link is named and not followed. A directory that cannot be listed, or is deeper than :data:`DEPTH`, is named too.
    """
    return [name for name, is_directory in _below(root) if not is_directory]


def directories_below(root: Path) -> list[Path]:
    """All directories below a directory, itself included, each after those that are in it."""
    inner = [root / name for name, is_directory in _below(root) if is_directory]
    return [*sorted(inner, key=lambda path: len(path.parts), reverse=True), root]


def _below(root: Path) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        parts = waiting.pop()
        try:
            with os.scandir(root.joinpath(*parts)) as entries:
                inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            if parts:
                found.append(("/".join(parts), False))
            continue
        if parts:
            found.append(("/".join(parts), True))
        for name, is_directory in inside:
            whole = (*parts, name)
            if is_directory and len(whole) <= DEPTH:
                waiting.append(whole)
            else:
                found.append(("/".join(whole), False))
    return sorted(found, key=lambda one: one[0].split("/"))
