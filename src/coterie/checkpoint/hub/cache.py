"""The Hub's cache on this machine, which all of its clients share: blobs, snapshots that link to them, locks.

https://huggingface.co/docs/huggingface_hub/guides/manage-cache describes it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from coterie.errors import CheckpointFileError, CoterieError, DiskSpaceError
from coterie.files.nearest import nearest_directory
from coterie.spec import format_bytes

_INCOMPLETE = ".incomplete"
_OF_CLIENT = re.compile(r"(?P<blob>[^.]+)\.[0-9a-f]{8}\.incomplete")
"""What the client downloads to since release 1.18: never taken up again by anyone."""
_KEPT_S = 14 * 24 * 3600
_RESERVE = 2**20


class RepositoryCache:
    """One repository's part of the cache.

    Args:
        repo_id: The repository.
    """

    def __init__(self, repo_id: str) -> None:
        self.root = Path(constants.HF_HUB_CACHE).expanduser().absolute()
        name = constants.REPO_ID_SEPARATOR.join(("models", *repo_id.split("/")))
        self.folder = self.root / name
        self._blobs = self.folder / "blobs"
        self._locks = self.root / ".locks" / name

    def snapshot(self, commit: str) -> Path:
        """The directory with the files of a commit."""
        return self.folder / "snapshots" / commit

    def blob(self, tag: str) -> Path:
        """Where a content lies."""
        return self._blobs / tag

    def partial(self, tag: str) -> Path:
        """Where a content lies until it is whole."""
        return self._blobs / f"{tag}{_INCOMPLETE}"

    def known_commit(self, revision: str | None) -> str | None:
        """The commit that a branch or tag was when it was last asked for; a commit is itself. None if not known."""
        revision = revision or constants.DEFAULT_REVISION
        if self.snapshot(revision).is_dir():
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if commit and self.snapshot(commit).is_dir() else None

    def remember(self, revision: str | None, commit: str) -> None:
        """Notes what a branch or tag is now, for when the Hub cannot be asked."""
        revision = revision or constants.DEFAULT_REVISION
        if revision == commit:
            return
        place = self.folder / "refs" / revision
        with suppress(OSError):  # a cache that cannot be written may be read all the same
            if not place.is_file() or place.read_text(encoding="utf-8") != commit:
                place.parent.mkdir(parents=True, exist_ok=True)
                fresh = place.with_name(f".{place.name}.{os.getpid()}")
                fresh.write_text(commit, encoding="utf-8")
                fresh.replace(place)

    @contextmanager
    def locked(self, tag: str) -> Iterator[None]:
        """Keeps other processes, and other clients of the Hub, from downloading the same content."""
        self._locks.mkdir(parents=True, exist_ok=True)
        self._blobs.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._locks / f"{tag}.lock"):
            yield

    def link(self, commit: str, name: str, blob: Path) -> Path:
        """Shows a blob under its name in a commit's snapshot; moves it there where there are no symbolic links."""
        pointer = self.snapshot(commit) / name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh = pointer.with_name(f".{pointer.name}.{os.getpid()}")
        try:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.relpath(blob, pointer.parent))
            fresh.replace(pointer)
        except (OSError, NotImplementedError):
            fresh.unlink(missing_ok=True)
            shutil.move(blob, pointer)
        return pointer

    def remove(self, pointer: Path) -> None:
        """Removes a file of a snapshot, and the blob that it shows."""
        blob = Path(os.path.normpath(pointer.parent / pointer.readlink())) if pointer.is_symlink() else None
        pointer.unlink(missing_ok=True)
        if blob is not None and blob.parent == self._blobs:
            blob.unlink(missing_ok=True)

    def remove_stale(self) -> int:
        """Removes what killed downloads of this repository left and nobody goes on from; returns the bytes.

        What is being downloaded now is locked. A part that a next try goes on from stays, for two weeks.
        """
        removed = 0
        with suppress(OSError):
            for path in sorted(self._blobs.glob(f"*{_INCOMPLETE}")):
                found = _OF_CLIENT.fullmatch(path.name)
                tag = found["blob"] if found else path.name.removesuffix(_INCOMPLETE)
                with suppress(OSError, Timeout):
                    if found is None and not self.blob(tag).exists() and _age_s(path) < _KEPT_S:
                        continue
                    with WeakFileLock(self._locks / f"{tag}.lock", timeout=0.05):
                        size = path.stat().st_size
                        path.unlink()
                        removed += size
        return removed

    def kept(self, tag: str | None) -> int:
        """Bytes of a content that an earlier try has left to go on from."""
        try:
            return 0 if tag is None else self.partial(tag).stat().st_size
        except OSError:
            return 0

    def check_fits(self, nbytes: int) -> None:
        """Refuses downloads that the cache's disk has no room for.

        Raises:
            DiskSpaceError: With facts ``needed`` and ``free`` in bytes.
        """
        place = nearest_directory(self.root)
        free = shutil.disk_usage(place).free
        if nbytes and nbytes + _RESERVE > free:
            raise DiskSpaceError(
                f"The download needs {format_bytes(nbytes + _RESERVE)} on the disk of the Hub's cache, {self.root}; "
                f"{format_bytes(free)} are free.",
                advice=f"Free {format_bytes(nbytes + _RESERVE - free)} there, or set HF_HOME to a directory on another "
                "disk.",
                path=self.root,
                needed=nbytes + _RESERVE,
                free=free,
            )

    def explained(self, error: OSError) -> CoterieError:
        """Our error for one that writing the cache ended in."""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(
                f"The disk of the Hub's cache, {self.root}, is full ({reason}).",
                advice="Free space there, or set HF_HOME to a directory on another disk; then run the same command "
                "again: what was downloaded is kept.",
                path=self.root,
            )
        return CheckpointFileError(
            f"The Hub's cache, {self.root}, cannot be written: {reason}.",
            advice="Make it writable for this user, or set HF_HOME to a directory that is.",
            path=Path(error.filename) if error.filename else self.root,
            errno=error.errno,
        )


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
