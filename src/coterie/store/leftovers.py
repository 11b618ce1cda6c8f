"""Files that a growth writes before the manifest names them: what there is of one that runs, or of one that was killed.

They are no part of the store, and a reader does not see them. The next writer finishes them or takes them away.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from coterie.store import names
from coterie.store.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file that does not belong to the store yet, or never will.

    Attributes:
        file: Path relative to the store.
        nbytes: Its size.
    """

    file: str
    nbytes: int


def find_leftover(root: Path, manifest: Manifest, name: str) -> Leftover | None:
    """The left-over file of this name, or None if no growth of the store writes such a file.

    Args:
        root: The store.
        manifest: What it holds.
        name: A file that the manifest does not name, relative to the store.

    Raises:
        OSError: If the file cannot be looked at.
    """
    final = names.final_file(name)
    if name in (names.LOCK, names.JOURNAL, names.RECEIVED) or final in (names.MANIFEST, names.JOURNAL):
        known = True
    else:
        known = _is_new_segment(manifest, final or name)
    if not known:
        return None
    found = (root / name).lstat()
    return Leftover(file=name, nbytes=found.st_size) if stat.S_ISREG(found.st_mode) else None


def _is_new_segment(manifest: Manifest, name: str) -> bool:
    """Whether a growth gives this name to experts that it adds: of a bank that is there, after its last segment."""
    found = names.segment_of(name)
    if found is None:
        return False
    key, number = found
    bank = manifest.banks_by_key.get(key)
    return bank is not None and number >= len(bank.segments)
