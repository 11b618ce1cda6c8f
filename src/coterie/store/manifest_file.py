"""Reading ``coterie.json`` from a directory, and checking that the files it names are what they are said to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

import xxhash

from coterie.errors import StoreError, StoreNotFoundError
from coterie.files.regular import regular_file
from coterie.spec import FileStamp
from coterie.store import names
from coterie.store.from_hub import blob_of, is_regular
from coterie.store.manifest import Manifest
from coterie.store.manifest_json import MAX_MANIFEST_BYTES, parse_manifest
from coterie.store.strict_json import format_error


def is_store(path: Path | str) -> bool:
    """Whether a directory has a manifest, which is written last: without one it is no (finished) store."""
    root = Path(path)
    try:
        return is_regular(root, root / names.MANIFEST)
    except (OSError, ValueError):
        return False


def is_unfinished(path: Path | str) -> bool:
    """Whether an extraction into a directory has begun and not finished: it has a journal and no manifest."""
    return (Path(path) / names.JOURNAL).is_file() and not is_store(path)


def load_manifest(root: Path) -> tuple[Manifest, str]:
    """Reads the manifest of a store and its digest.

    Raises:
        StoreNotFoundError: If there is no store; says what is there instead.
        StoreFormatError: If a MUST rule is broken.
        StoreError: If it cannot be read.
    """
    path = root / names.MANIFEST
    try:
        if not is_regular(root, path):
            raise format_error(path, "R1", "the file itself", "not a regular file")
        with regular_file(blob_of(root, path) or path, links=False) as file:
            found = os.fstat(file.fileno()).st_size
            if found > MAX_MANIFEST_BYTES:
                what = f"{found} bytes, more than the limit of {MAX_MANIFEST_BYTES}"
                raise format_error(path, "R1", "the file itself", what)
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(root) from None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", advice="Check the permissions and the disk.", path=path
        ) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise format_error(path, "R1", "the file itself", f"more than the limit of {MAX_MANIFEST_BYTES} bytes")
    return parse_manifest(data, path), str(xxhash.xxh3_128_hexdigest(data))


def _not_found(root: Path) -> StoreNotFoundError:
    if not root.exists():
        return StoreNotFoundError(
            f"There is no directory {root}.", advice="Make a store with 'coterie extract CHECKPOINT STORE'.", path=root
        )
    if not root.is_dir():
        return StoreNotFoundError(f"{root} is a file; a store is a directory.", path=root)
    if (root / names.JOURNAL).exists() or (root / names.LOCK).exists():
        return StoreNotFoundError(
            f"{root} is an unfinished store: its extraction was interrupted or is still running.",
            advice="Run the same 'coterie extract' command again; it goes on where it stopped.",
            path=root,
        )
    if (root / "config.json").exists() and any(root.glob("*.safetensors*")):
        return StoreNotFoundError(
            f"{root} is a checkpoint, not a store.",
            advice=f"Open it as a checkpoint, or make a store of it with 'coterie extract {root} STORE'.",
            path=root,
        )
    return StoreNotFoundError(
        f"{root} has no {names.MANIFEST}: it is not a store.",
        advice="Make a store with 'coterie extract CHECKPOINT STORE'.",
        path=root,
    )


def check_file(root: Path, name: str, nbytes: int) -> FileStamp:
    """Checks that a file of the manifest is a regular file of this size, reached without symbolic links (rule R20).

    In a snapshot of the Hub's cache the file may be a link to a content of the same repository.

    Args:
        root: The store; it may itself be reached through links.
        name: Relative name from a checked manifest, hence without ``..``.
        nbytes: Size that the manifest says.

    Returns:
        The file's stamp, which whoever reads it compares with what is then open.

    Raises:
        StoreFormatError: If it is anything else.
    """
    path = root
    parts = PurePosixPath(name).parts
    linked = False
    for index, part in enumerate(parts):
        path = path / part
        wanted = stat.S_ISREG if index == len(parts) - 1 else stat.S_ISDIR
        try:
            found = path.lstat()
            blob = blob_of(root, path) if stat.S_ISLNK(found.st_mode) and wanted is stat.S_ISREG else None
            linked = blob is not None
            found = found if blob is None else blob.lstat()
        except OSError as error:
            raise format_error(root / name, "R20", "the file itself", f"missing: {error.strerror}") from error
        if not wanted(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a plain file or directory"
            raise format_error(root / name, "R20", "the file itself", f"{path} is {what}")
    if found.st_size != nbytes:
        raise format_error(root / name, "R20", "the file itself", f"{found.st_size} bytes instead of {nbytes}")
    return FileStamp.of(found, links=linked)
