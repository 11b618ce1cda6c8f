"""Removing what interrupted writers left behind, and nothing else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coterie.files.below import files_below
from coterie.store import names
from coterie.store.disk import Disk


def sweep(disk: Disk, *, keep: Collection[str], side_files: Collection[str], dense: bool) -> None:
    """Removes temporary files and finished ones of a writer whose work will not be continued.

    Only names that a store's writer gives are touched; the journal stays, it is replaced or removed by the caller.

    Args:
        disk: The store.
        keep: Names that belong to the store.
        side_files: Names of side files that the writer was to copy.
        dense: Whether dense shards are removed too.
    """
    touched: set[Path] = set()
    for name in files_below(disk.root):
        if name in keep:
            continue
        leftover = _is_own_partial(name, side_files) or names.is_segment_file(name) or name in side_files
        leftover = leftover or name.startswith(f"{names.CALIBRATION}/") or name == names.RECEIVED
        if leftover or (dense and names.is_dense_file(name)):
            disk.remove(name)
            touched.add(disk.path(name).parent)
    for directory in sorted(touched):
        disk.sync(directory)
    experts = disk.path(names.EXPERTS)
    if experts.is_dir() and not experts.is_symlink():
        for directory in sorted(experts.iterdir()):
            disk.remove_empty_directory(directory)
        disk.remove_empty_directory(experts)
    calibration = disk.path(names.CALIBRATION)
    if calibration.is_dir() and not calibration.is_symlink():
        disk.remove_empty_directory(calibration)


def sweep_partial(disk: Disk, side_files: Collection[str]) -> None:
    """Removes the temporary files of a writer that was interrupted and will be continued."""
    for name in files_below(disk.root):
        if _is_own_partial(name, side_files):
            disk.remove(name)


def _is_own_partial(name: str, side_files: Collection[str]) -> bool:
    final = names.final_file(name)
    if final is None:
        return False
    own = (names.MANIFEST, names.JOURNAL)
    return final in own or final in side_files or names.is_segment_file(final) or names.is_dense_file(final)
