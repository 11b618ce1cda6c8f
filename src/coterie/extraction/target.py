"""Whether a store may be made in a directory, and whether it, and what is downloaded for it, fits on the disks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coterie.errors import DiskSpaceError, UsageError
from coterie.files.nearest import nearest_directory
from coterie.origins import Origin
from coterie.spec import format_bytes
from coterie.store import Survey

_RESERVE = 2**20
"""Bytes kept free for directories, the journal and the file system's own needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDownload:
    """A file that has to be downloaded first.

    Attributes:
        file: Its name in the repository.
        nbytes: Bytes that have not been downloaded yet.
    """

    file: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """What an extraction takes from one disk.

    Attributes:
        path: What lies on it: the store, or the Hub's cache.
        use: What it is needed for: ``store``, ``downloads``, or ``store and downloads``.
        needed: Bytes still to be written.
        free: Bytes that this user can write there, with what an interrupted run left and will be removed.
    """

    path: Path
    use: Literal["store", "downloads", "store and downloads"]
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


def missing_downloads(origin: Origin, names: tuple[str, ...]) -> tuple[ShardDownload, ...]:
    """The shards with these tensors that are not on this machine yet, with what is still to come of each."""
    sizes = origin.missing(names)
    return tuple(ShardDownload(file=path.name, nbytes=nbytes) for path, nbytes in sizes.items())


def disk_needs(
    store: Path, survey: Survey, downloads: tuple[ShardDownload, ...], cache: Path | None
) -> tuple[DiskNeed, ...]:
    """Compares what is still to be written with what is free, disk by disk; that of the store comes first.

    Args:
        store: The store's directory; need not exist.
        survey: What is to be written.
        downloads: What is to be downloaded.
        cache: The directory to which downloads go; need not exist. None if there is none.
    """
    place, nbytes = nearest_directory(store), sum(download.nbytes for download in downloads)
    needed, free = survey.missing_nbytes, shutil.disk_usage(place).free + survey.reclaimable
    if not downloads or cache is None:
        return (_need(store, "store", needed, free),)
    if place.stat().st_dev == nearest_directory(cache).stat().st_dev:
        return (_need(store, "store and downloads", needed + nbytes, free),)
    own = _need(cache, "downloads", nbytes, shutil.disk_usage(nearest_directory(cache)).free)
    return _need(store, "store", needed, free), own


def check_downloads(origin: Origin, names: tuple[str, ...], *, dry_run: bool) -> None:
    """Refuses to begin with weights that are not here, where a dry run must not download them, or they do not fit.

    Raises:
        UsageError: In a dry run.
        DiskSpaceError: With facts ``path``, ``needed`` and ``free`` in bytes.
    """
    downloads = missing_downloads(origin, names)
    if not downloads or origin.cache is None:
        return
    if dry_run:
        raise UsageError(
            f"Bits are allocated by what weights lose, and {len(downloads)} files with weights are not here.",
            advice="A dry run downloads nothing. Leave out --dry-run, or download the checkpoint first.",
        )
    nbytes = sum(download.nbytes for download in downloads)
    check_fits([_need(origin.cache, "downloads", nbytes, shutil.disk_usage(nearest_directory(origin.cache)).free)])


def check_fits(needs: Sequence[DiskNeed]) -> None:
    """Refuses what does not fit.

    Raises:
        DiskSpaceError: With facts ``path``, ``needed`` and ``free`` in bytes.
    """
    for need in needs:
        if need.fits:
            continue
        lacking = format_bytes(need.needed - need.free)
        if need.use == "downloads":
            what, elsewhere = "The download needs", "set HF_HOME to a directory on another disk"
            where = f"the disk of the Hub's cache, {need.path}"
        else:
            what = "The store needs" if need.use == "store" else "The store, with what is downloaded for it, needs"
            where, elsewhere = f"the disk of {need.path}", "choose another disk"
            if need.use != "store":
                elsewhere += " for the store, or for downloads with HF_HOME"
        raise DiskSpaceError(
            f"{what} {format_bytes(need.needed)} on {where}; {format_bytes(need.free)} are free.",
            advice=f"Free {lacking}, {elsewhere}, or take fewer experts with --experts.",
            path=need.path,
            needed=need.needed,
            free=need.free,
        )


def _need(path: Path, use: Literal["store", "downloads", "store and downloads"], needed: int, free: int) -> DiskNeed:
    return DiskNeed(path=path, use=use, needed=needed + (_RESERVE if needed else 0), free=free)
