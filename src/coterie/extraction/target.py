"""Whether a store may be made in a directory, and whether it fits there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint import Checkpoint
from coterie.errors import DiskSpaceError, UsageError
from coterie.spec import format_bytes
from coterie.store import Survey

_RESERVE = 2**20
"""Bytes kept free for directories, the journal and the file system's own needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDownload:
    """A file that has to be downloaded first.

    Attributes:
        file: Its name in the repository.
        nbytes: Bytes of its tensors.
    """

    file: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """What an extraction takes from the disk that the store lies on.

    Attributes:
        needed: Bytes still to be written, downloads included where the Hub's cache lies on the same disk.
        free: Bytes that this user can write there, with what an interrupted run left and will be removed.
    """

    needed: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needed <= self.free


def check_apart(store: Path, checkpoint: Path) -> None:
    """Refuses to mix a store with the checkpoint that it is made from.

    Raises:
        UsageError: If one directory is, or lies within, the other.
    """
    target, source = store.resolve(), checkpoint.resolve()
    if target == source:
        raise UsageError(
            f"{store} is the checkpoint itself.", advice="Choose another directory for the store.", path=store
        )
    if target.is_relative_to(source):
        raise UsageError(
            f"{store} lies within the checkpoint {checkpoint}.", advice="Choose a directory outside it.", path=store
        )
    if source.is_relative_to(target):
        raise UsageError(
            f"{store} contains the checkpoint {checkpoint}.", advice="Choose a directory beside it.", path=store
        )


def missing_downloads(checkpoint: Checkpoint, names: tuple[str, ...]) -> tuple[ShardDownload, ...]:
    """The shards with these tensors that are not on this machine yet, with their sizes."""
    missing = checkpoint.location.missing_shards(checkpoint.tensors[name].path for name in names)
    sizes = dict.fromkeys(missing, 0)
    for info in checkpoint.tensors.values():
        if info.path in sizes:
            sizes[info.path] += info.nbytes
    return tuple(ShardDownload(file=path.name, nbytes=nbytes) for path, nbytes in sizes.items())


def disk_need(store: Path, survey: Survey, downloads: tuple[ShardDownload, ...], cache: Path) -> DiskNeed:
    """Compares what is still to be written with what is free.

    Args:
        store: The store's directory; need not exist.
        survey: What is to be written.
        downloads: What is to be downloaded.
        cache: A directory on the disk to which downloads go.
    """
    place = _existing(store)
    needed = survey.missing_nbytes
    if place.stat().st_dev == _existing(cache).stat().st_dev:
        needed += sum(download.nbytes for download in downloads)
    reserve = _RESERVE if needed else 0
    return DiskNeed(needed=needed + reserve, free=shutil.disk_usage(place).free + survey.reclaimable)


def check_fits(store: Path, need: DiskNeed) -> None:
    """Refuses what does not fit.

    Raises:
        DiskSpaceError: With facts ``needed`` and ``free`` in bytes.
    """
    if not need.fits:
        raise DiskSpaceError(
            f"The store needs {format_bytes(need.needed)} on the disk of {store}, {format_bytes(need.free)} are free.",
            advice=f"Free {format_bytes(need.needed - need.free)}, choose another disk, or take fewer experts with "
            "--experts.",
            path=store,
            needed=need.needed,
            free=need.free,
        )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
