"""Stores that clients of the Hub downloaded: what is in their directories beside a store, and links that are no danger.

The Hub's cache keeps contents in ``models--NAME/blobs``, and shows them under their names by links in
``models--NAME/snapshots/COMMIT``. A download into a directory of one's own leaves its notes in ``.cache/huggingface``.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache describes both.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from coterie.store import names

_NOTES = ".cache/huggingface"
_OF_GIT = (".gitattributes", ".gitignore")


def blobs_of(root: Path) -> Path | None:
    """The directory with the contents that a snapshot in the Hub's cache shows; None if ``root`` is no snapshot."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent
    if real.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def is_snapshot(root: Path) -> bool:
    """Whether a directory is a snapshot in the Hub's cache, whose files stay as they are."""
    return blobs_of(root) is not None


def blob_of(root: Path, path: Path) -> Path | None:
    """The content that a link of a snapshot shows.

    Args:
        root: The directory that may be a snapshot.
        path: A link in it, at any depth.

    Returns:
        A regular file that lies directly in the blobs of the same repository; None if the link leads anywhere else.
    """
    blobs = blobs_of(root)
    if blobs is None:
        return None
    try:
        target = Path(os.path.normpath(Path(os.path.realpath(path.parent)) / path.readlink()))
        is_content = target.parent == blobs and stat.S_ISREG(target.lstat().st_mode)
    except (OSError, ValueError):
        return None
    return target if is_content else None


def is_regular(root: Path, path: Path) -> bool:
    """Whether a path is a regular file, or a link of the Hub's cache to one. Raises as :meth:`pathlib.Path.lstat`."""
    found = path.lstat().st_mode
    return stat.S_ISREG(found) or (stat.S_ISLNK(found) and blob_of(root, path) is not None)


def is_from_hub(root: Path) -> bool:
    """Whether a client of the Hub downloaded this directory."""
    return blobs_of(root) is not None or (root / _NOTES).is_dir()


def is_of_repository(name: str) -> bool:
    """Whether a file that no manifest names may be beside a store in a repository, or be a note of its download.

    Neither weights nor code: a plain ``from_pretrained`` on a store has to fail there, too.

    Args:
        name: Path relative to the store.
    """
    return name.startswith(f"{_NOTES}/") or name in _OF_GIT or names.side_file_problem(name) is None
