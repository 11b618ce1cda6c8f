"""The files of a checkpoint that is being written: which are whole already, and how the others become so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.errors import StoreError, UsageError
from coterie.store import is_store
from coterie.store import names as store_names
from coterie.store.dense_writer import DenseShard, write_shard
from coterie.store.disk import Disk
from coterie.store.journal import FinishedFile, Journal, JournalHeader, read_journal
from coterie.store.lock import WriterLock
from coterie.store.syscalls import SystemCalls

CHECKSUMS = "SHA256SUMS"
INDEX = "model.safetensors.index.json"


def shard_files(count: int) -> tuple[str, ...]:
    """The names of ``count`` files of weights, as transformers has them."""
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))


def check_target(root: Path, parts: Mapping[str, str], *, restart: bool) -> dict[str, FinishedFile]:
    """Looks at a directory as a writer would, without changing it.

    Args:
        root: The checkpoint's directory; need not exist.
        parts: Digests of what is to be written.
        restart: Whether an unfinished export of something else would be discarded.

    Returns:
        What an interrupted export of the same has finished there, by name.

    Raises:
        UsageError: If it is a store.
        StoreError: If it is a file, holds something else, or an unfinished export of something else.
    """
    if not root.exists():
        return {}
    if not root.is_dir():
        raise StoreError(f"{root} is a file; a checkpoint is a directory.", advice="Choose another path.", path=root)
    if is_store(root):
        raise UsageError(f"{root} is a store; it is not overwritten.", advice="Choose another directory.", path=root)
    journal = root / store_names.JOURNAL
    harmless = {store_names.LOCK, store_names.partial_file(store_names.JOURNAL)}
    found = sorted(path.name for path in root.iterdir() if path.name not in harmless)
    if found and not journal.exists():
        raise StoreError(
            f"{root} is not empty: it holds {found[0]!r}.",
            advice="Choose a new or empty directory; nothing was changed.",
            path=root,
            found=found[0],
        )
    read = read_journal(journal)
    if read is not None and read[0].parts == dict(parts):
        return read[1]
    if journal.exists() and not restart:
        raise StoreError(
            f"{root} holds an unfinished export of another store or with other options, or an unfinished store.",
            advice="Repeat the command that began it, choose another directory, or discard what is there (--restart).",
            path=root,
        )
    return {}


class CheckpointWriter:
    """Writes the files of a checkpoint; each becomes visible whole, and is not written again after an interruption.

    Used in a ``with`` statement; the directory is locked against other writers meanwhile.

    Args:
        root: The directory; made if need be.
        parts: Digests of what is to be written.
        restart: Discard an unfinished export of something else.
        calls: The system calls; tests pass one that fails.

    Raises:
        StoreBusyError: If another process is writing there.
        StoreError: As :func:`check_target`.
    """

    def __init__(
        self, root: Path, parts: Mapping[str, str], *, restart: bool = False, calls: SystemCalls | None = None
    ) -> None:
        check_target(root, parts, restart=restart)
        self._disk = Disk(root, calls)
        self._disk.make_directory(root)
        self._lock = WriterLock(self._disk)
        try:
            self._journal = self._begin(parts, restart=restart)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()
        self._lock.release()

    def finished(self, file: str, layout: str = "") -> bool:
        """Whether a file is whole already."""
        entry = self._journal.finished(file)
        return entry is not None and entry.layout == layout

    def write_shard(self, shard: DenseShard, layout: str) -> None:
        """Writes a file of weights.

        Raises:
            DiskSpaceError: If it does not fit.
            StoreError: If it cannot be written.
        """
        checksum = write_shard(self._disk, shard, hashlib.sha256)
        entry = FinishedFile(file=shard.file, nbytes=shard.nbytes, checksums=(checksum,), layout=layout)
        self._journal.append(entry)

    def write_file(self, name: str, data: bytes) -> None:
        """Writes another file."""
        self._disk.write(name, data)
        checksum = hashlib.sha256(data).hexdigest()
        self._journal.append(FinishedFile(file=name, nbytes=len(data), checksums=(checksum,)))

    def finish(self, files: Sequence[str]) -> None:
        """Writes the checksums of these files, and removes every trace of the work."""
        entries = {name: self._journal.finished(name) for name in files}
        lines = [f"{entry.checksums[0]}  {name}\n" for name, entry in sorted(entries.items()) if entry is not None]
        if len(lines) < len(files):
            lacking = min(name for name, entry in entries.items() if entry is None)
            raise StoreError(
                f"{self._disk.path(lacking)} was removed while the checkpoint was being written.",
                advice="Repeat the command: what is there is kept.",
                path=self._disk.path(lacking),
            )
        self._disk.write(CHECKSUMS, "".join(lines).encode())
        self._journal.close()
        self._disk.remove(store_names.JOURNAL)
        self._disk.sync(self._disk.root)

    def _begin(self, parts: Mapping[str, str], *, restart: bool) -> Journal:
        old = Journal.resume(self._disk)
        for path in sorted(self._disk.root.rglob(".*.partial")):
            # Of an export that was killed. The directory is locked, and holds nothing that is not of an export.
            self._disk.remove(str(path.relative_to(self._disk.root)))
        if old is not None and old.header.parts == dict(parts):
            return old
        if old is not None:
            _, entries, _ = read_journal(self._disk.path(store_names.JOURNAL)) or (None, {}, 0)
            for name in entries:
                self._disk.remove(name)
            old.close()
        return Journal.create(self._disk, JournalHeader(base="", parts=dict(parts), files=()))
