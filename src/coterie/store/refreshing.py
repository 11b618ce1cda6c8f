"""Takes over files beside the weights that somebody edited: a chat template, generation settings, a tokenizer.

A store knows its small files by size and checksum, so that one which changed by itself is found out. Who changes one on
purpose says so here; nothing else of the store is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from coterie.errors import StoreError
from coterie.files.regular import read_bounded
from coterie.store import names
from coterie.store.disk import Disk
from coterie.store.lock import WriterLock
from coterie.store.manifest import FileFacts
from coterie.store.manifest_file import load_manifest
from coterie.store.manifest_json import manifest_bytes, parse_manifest

_CONFIGURATION = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What was taken over.

    Attributes:
        changed: Names of files with another content than before.
        added: Names of files that the store did not have.
        removed: Names of files that are gone.
    """

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def refresh_files(root: Path, files: Mapping[str, Path]) -> Refreshed:
    """Registers the files beside the weights as they are now.

    Args:
        root: The store.
        files: The files that belong there, by their name in the store.

    Raises:
        StoreError: If a file cannot be read, the configuration is another one, or a file is damaged otherwise.
        StoreNotFoundError: If there is no store.
        StoreBusyError: If another process is writing it.
    """
    manifest, _ = load_manifest(root)
    disk = Disk(root)
    lock = WriterLock(disk)
    try:
        manifest, _ = load_manifest(root)
        before = {facts.file: facts for facts in manifest.files}
        now = {name: _facts(name, path) for name, path in sorted(files.items())}
        changed = tuple(name for name, facts in now.items() if name in before and facts != before[name])
        if _CONFIGURATION in changed or _CONFIGURATION not in now:
            raise StoreError(
                f"{root / _CONFIGURATION} is not the one that the experts were stored by.",
                advice="Put the old one back, or extract the store again.",
                path=root / _CONFIGURATION,
            )
        added = tuple(name for name in now if name not in before)
        removed = tuple(name for name in before if name not in now)
        if changed or added or removed:
            data = manifest_bytes(replace(manifest, files=tuple(now.values())))
            # Our own bytes are read as a stranger's: a manifest that breaks a rule is never published.
            parse_manifest(data, disk.path(names.MANIFEST))
            disk.write(names.MANIFEST, data)
            disk.sync(root)
    finally:
        lock.release()
    return Refreshed(changed=changed, added=added, removed=removed)


def _facts(name: str, path: Path) -> FileFacts:
    try:
        data = read_bounded(path, names.MAX_SIDE_FILE_BYTES, links=False)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.", advice="Check what it is.", path=path) from error
    return FileFacts(file=name, nbytes=len(data), checksum=xxhash.xxh3_128_hexdigest(data))
