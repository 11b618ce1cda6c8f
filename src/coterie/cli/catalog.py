"""The stores of a folder: found, measured, removed. Prints nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coterie.errors import StoreError, StoreNotFoundError, UsageError
from coterie.files.below import directories_below, files_below
from coterie.store import Manifest, Store, is_store, side_file_problem
from coterie.store import names as store_names
from coterie.store.disk import Disk
from coterie.store.leftovers import find_leftover
from coterie.store.lock import WriterLock
from coterie.store.manifest_file import load_manifest

State = Literal["complete", "partial", "unfinished", "damaged"]

_OF_WRITERS = (store_names.JOURNAL, store_names.RECEIVED)
"""What a writer that was interrupted leaves behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """One store of a folder.

    Attributes:
        name: Name of its directory.
        path: Its directory.
        state: ``complete`` (every expert), ``partial`` (finished, with some of the experts), ``unfinished`` (its
            extraction was interrupted or is running) or ``damaged`` (the manifest or a file is not as it must be).
        nbytes: Bytes of all its files.
        model: transformers class; None if there is no readable manifest.
        source: Name of the checkpoint it was made from; None likewise.
        experts_present: Experts in it; None likewise.
        experts_total: Experts with weights that the model has; None likewise.
        problem: What is wrong with a damaged one; else None.
    """

    name: str
    path: Path
    state: State
    nbytes: int
    model: str | None
    source: str | None
    experts_present: int | None
    experts_total: int | None
    problem: str | None


def list_stores(folder: Path) -> list[StoreEntry]:
    """The stores among the folder's directories (and the folder itself, if it is one), by name.

    Opening a store reads its manifest and the sizes of its files, not their content: ``complete`` means that nothing
    is absent, not that checksums were compared.

    Raises:
        UsageError: If the folder exists and cannot be listed.
    """
    if not folder.exists():
        return []
    try:
        candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be listed: {error.strerror}.", path=folder) from error
    return [examine(path) for path in candidates if is_store(path) or is_unfinished(path)]


def is_unfinished(path: Path) -> bool:
    """Whether an extraction into this directory has begun and not finished."""
    return (path / store_names.JOURNAL).is_file() and not is_store(path)


def examine(path: Path) -> StoreEntry:
    """Describes the finished, unfinished or damaged store in a directory."""
    manifest: Manifest | None = None
    problem: str | None = None
    state: State = "unfinished"
    if is_store(path):
        try:
            manifest = Store.open(path).manifest
            state = "complete" if manifest.is_complete else "partial"
        except StoreError as error:
            state, problem = "damaged", str(error)
    return StoreEntry(
        name=path.absolute().name,
        path=path.absolute(),
        state=state,
        nbytes=sum(_size(file) for file in _files(path)),
        model=None if manifest is None else manifest.model.class_name,
        source=None if manifest is None else manifest.source.name,
        experts_present=None if manifest is None else sum(len(bank.records) for bank in manifest.banks),
        experts_total=None if manifest is None else sum(len(b.records) + len(b.absent) for b in manifest.banks),
        problem=problem,
    )


def find_store(folder: Path, name: str) -> StoreEntry:
    """The store of this name in the folder, or at this path.

    Raises:
        StoreNotFoundError: If there is none; names the nearest.
    """
    entries = {entry.name: entry for entry in list_stores(folder)}
    if name in entries:
        return entries[name]
    path = Path(name).expanduser()
    if is_store(path) or is_unfinished(path):
        return examine(path)
    if not entries:
        raise StoreNotFoundError(f"There is no store in {folder}, and none at {path}.", path=folder, got=name)
    unknown = UsageError.unknown("store", name, entries)
    raise StoreNotFoundError(f"{unknown.message} (Looked in {folder}.)", advice=unknown.advice, path=folder, got=name)


def remove_store(entry: StoreEntry) -> None:
    """Removes a store's files and its directory; the manifest goes last.

    Interrupted, it leaves a store whose manifest names missing files: listed as damaged, refused by everything that
    opens stores, and removable again.

    Raises:
        StoreError: If the directory holds files that belong to no store (nothing is removed then), is reached through
            a link, or a file cannot be removed.
        StoreBusyError: If another process is writing it.
    """
    if entry.path.is_symlink():
        raise StoreError(
            f"{entry.path} is a link.", advice="Remove the link, or the store it leads to.", path=entry.path
        )
    disk = Disk(entry.path)
    lock = WriterLock(disk)
    try:
        files = [file for file in _files(entry.path) if file.name != store_names.LOCK]
        foreign = sorted(_foreign(entry, files))
        if foreign:
            raise StoreError(
                f"{entry.path} holds files that are not the store's, such as {foreign[0]!r}; nothing was removed.",
                advice="Move them away first.",
                path=entry.path,
                foreign=foreign,
            )
        manifest = entry.path / store_names.MANIFEST
        try:
            for file in sorted(files, key=lambda file: (file == manifest, file)):
                file.unlink()
        except OSError as error:
            raise _not_removed(entry, error) from error
    finally:
        lock.release()
    try:
        for directory in directories_below(entry.path):
            directory.rmdir()
    except OSError as error:
        raise _not_removed(entry, error) from error


def _foreign(entry: StoreEntry, files: list[Path]) -> Iterator[str]:
    """Names of files that no writer of this store can have made."""
    manifest: Manifest | None = None
    known: set[str] = set()
    if entry.state in ("complete", "partial"):
        manifest, _ = load_manifest(entry.path)
        known = {*manifest.file_sizes, store_names.MANIFEST, *_OF_WRITERS}
    for file in files:
        name = file.relative_to(entry.path).as_posix()
        if manifest is not None:
            if not (name in known or store_names.is_partial_file(name) or find_leftover(entry.path, manifest, name)):
                yield name
        elif not (
            name in (store_names.MANIFEST, *_OF_WRITERS)
            or name.startswith(f"{store_names.CALIBRATION}/")
            or store_names.is_segment_file(name)
            or store_names.is_dense_file(name)
            or store_names.is_partial_file(name)
            # Without a manifest nothing says which files were copied beside the tensors.
            or side_file_problem(name) is None
        ):
            yield name


def _files(root: Path) -> Iterator[Path]:
    """Every file below a directory; links are files here, and not followed."""
    yield from (root / name for name in files_below(root))


def _size(file: Path) -> int:
    """Bytes of a plain file; 0 for one that has gone in the meantime, or a link."""
    try:
        found = file.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _not_removed(entry: StoreEntry, error: OSError) -> StoreError:
    return StoreError(
        f"{error.filename or entry.path} cannot be removed: {error.strerror}.",
        advice="Check the permissions and run the same command again.",
        path=entry.path,
    )
