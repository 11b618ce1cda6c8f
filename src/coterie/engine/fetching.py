"""Experts that a partial store lacks, read from the checkpoint that it was made from, and added to the store."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint import Checkpoint, Location
from coterie.engine.fetched_records import FetchedRecords
from coterie.engine.store_growth import StoreGrowth
from coterie.errors import CheckpointFileError, LoadError, StoreError, UsageError
from coterie.extraction.packed import schemes_of_packed
from coterie.extraction.quantising import SchemedExperts, scheme_of_store
from coterie.files.naming import IN_PACKAGE, model_path
from coterie.origins import CheckpointOrigin, Origin
from coterie.origins.store_or_checkpoint import need_checkpoint
from coterie.records import RecordReader
from coterie.records.files import file_stamps, first_changed
from coterie.records.remote import RangeReader, RateLimit
from coterie.spec import BankKey, ExpertKey, Extent, FileStamp, RecordLayout
from coterie.spec.encodings import NATIVE
from coterie.store import Store
from coterie.store.names import MANIFEST
from coterie.store.syscalls import SystemCalls

_ADVICE = "Restore it, or open the store with another 'missing', which needs no checkpoint."


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchCounts:
    """What was fetched since a model was opened.

    Attributes:
        experts: Distinct experts read from the checkpoint.
        nbytes: Bytes read from the checkpoint for them; more than their size if some were read again.
        added: Experts that this process has added to the store.
    """

    experts: int = 0
    nbytes: int = 0
    added: int = 0


class FetchingExperts:
    """A partial store and its checkpoint as one :class:`~coterie.spec.ExpertSource` of the whole model.

    What the store has is read from it, also what other processes have added to it meanwhile. The rest is read from
    the checkpoint, in the scheme of the store's experts if they are all alike, and handed to a
    :class:`~coterie.engine.store_growth.StoreGrowth`.

    Args:
        store: The opened store.
        origin: What it was made from; see :func:`open_origin`.
        banks: The banks that the model has; those of other components are left out.
        calls: The system calls of the growth; tests pass some that fail.
    """

    def __init__(
        self, store: Store, origin: Origin, banks: Collection[BankKey], *, calls: SystemCalls | None = None
    ) -> None:
        self._store = store
        self._origin = origin
        self._opened = frozenset(store.keys())
        self._stored = self._opened
        self._manifest = self._manifest_stamp()
        self._keys = tuple(sorted(key for key in {*self._opened, *origin.keys()} if key.bank_key in banks))
        self._scheme_of = scheme_of = schemes_of_packed(origin, scheme_of_store(store.manifest) or NATIVE)
        self._absent = SchemedExperts(origin, scheme_of)
        self._reader = RecordReader(self._absent)
        self._shards = file_stamps(info.path for info in origin.tensors.values())
        self._lock = threading.Lock()
        self._download_lock = threading.Lock()
        self._fetched: set[ExpertKey] = set()
        self._fetched_nbytes = 0
        # A file here is read again when the store grows; what came over a network is not.
        self._records = None if origin.reader is None else FetchedRecords(store.path)
        self.growth = StoreGrowth(
            store, origin, scheme=scheme_of, read=self._read_again, on_grown=self.refresh, calls=calls
        )

    def counts(self) -> FetchCounts:
        """What was fetched so far."""
        with self._lock:
            return FetchCounts(experts=len(self._fetched), nbytes=self._fetched_nbytes, added=self.growth.added)

    def refresh(self) -> None:
        """Looks what others, or this process, have added to the store; costs one stat if nothing has changed."""
        stamp = self._manifest_stamp()
        with self._lock:
            if stamp is None or stamp == self._manifest:
                return
            try:
                grown = Store.open(self._store.path)
            except StoreError:
                return  # what was there when it was opened is still known, and the checkpoint has the rest
            was, now = self._store.manifest, grown.manifest
            if (now.source.integrity, now.model) != (was.source.integrity, was.model):
                return
            if any(grown.stamps[file] != known for file, known in self._store.stamps.items()):
                return  # a growth adds files and changes none: this is another store, or a damaged one
            added = {key for key in grown.keys() if key not in self._opened and self._is_as_promised(grown, key)}
            self._store, self._stored, self._manifest = grown, self._opened | added, stamp
        if self._records is not None:
            self._records.forget(added)

    def close(self) -> None:
        """Adds what is still waiting to the store and closes the checkpoint's files. Harmless when repeated."""
        self.growth.close()
        if self._origin.reader is not None:
            self._origin.reader.stop()
        if self._records is not None:
            self._records.close()
        self._reader.close()
        self._absent.close()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """All experts of the model."""
        return self._keys

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record, the same before and after it is added to the store."""
        return self._store.layout(key) if key in self._opened else self._absent.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the store has the expert, or None if it has to be fetched."""
        if key not in self._stored:
            self.refresh()
        return self._store.extents(key) if key in self._stored else None

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads an expert, fetching it if the store lacks it; returns the bytes read.

        Raises:
            CheckpointFileError: If the checkpoint has changed or vanished since the model was opened.
            ReadError: If it cannot be read.
        """
        if key in self._stored:
            return self._store.read_into(key, record)
        nbytes = self._read_checkpoint(key, record)
        with self._lock:
            self._fetched.add(key)
            self._fetched_nbytes += nbytes
        if self._records is not None:
            self._records.put(key, record)
        if not self.growth.add(key) and self._records is not None:
            self._records.forget({key})
        return nbytes

    def checksum(self, key: ExpertKey) -> str | None:
        """The record's checksum if the store has it."""
        return self._store.checksum(key) if key in self._stored else None

    def _read_again(self, key: ExpertKey, record: memoryview) -> int:
        """The record for the store; of what was fetched over a network, that which came."""
        if self._records is not None and self._records.read(key, record):
            return len(record)
        return self._read_checkpoint(key, record)

    def _read_checkpoint(self, key: ExpertKey, record: memoryview) -> int:
        names = self._origin.names_of(key)
        infos = [self._origin.tensors[name] for name in names]
        # What a server has under a commit does not change.
        paths = {info.path for info in infos if info.remote is None}
        self._check_unchanged(key, {path: stamp for path, stamp in self._shards.items() if path in paths})
        with self._download_lock:
            # One thread downloads a shard; the others find it here.
            self._origin.download(names)
            self._shards = file_stamps(paths) | self._shards
            before = {path: self._shards[path] for path in paths}
        nbytes = self._reader.read(key, self._absent.layout(key), record)
        self._check_unchanged(key, before)
        return nbytes

    def _check_unchanged(self, key: ExpertKey, before: dict[Path, FileStamp]) -> None:
        changed = first_changed(before)
        if changed is not None:
            what = "has changed since the model was opened" if changed.exists() else "is no longer there"
            raise CheckpointFileError(
                f"Expert {key} cannot be fetched: {changed} {what}.", advice=_ADVICE, path=changed, key=key
            )

    def _is_as_promised(self, store: Store, key: ExpertKey) -> bool:
        """Whether the record is what the cache was told it would be: others may add experts in another form."""
        ours, theirs = self._absent.layout(key), store.layout(key)
        return store.scheme(key) == self._scheme_of(key) and (theirs.fields, theirs.nbytes) == (
            ours.fields,
            ours.nbytes,
        )

    def _manifest_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = (self._store.path / MANIFEST).stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def open_origin(
    store: Store, source: str | Path | None, *, offline: bool = False, rate: RateLimit | None = None
) -> CheckpointOrigin:
    """Opens the checkpoint that a store was made from.

    Args:
        store: The store; its manifest has the checkpoint's fingerprint.
        source: Directory, Hub id or ``bundled``; None for the repository and commit that the manifest names.
        offline: Use only what is on this machine.
        rate: Holds back what is read over the network.

    Raises:
        UsageError: If the store was made from a directory and none is given, or a rate is to be held of a directory.
        LoadError: If it is another checkpoint.
        CheckpointError: If it cannot be used.
    """
    facts, model = store.manifest.source, store.manifest.model
    if source is None:
        if facts.revision is None and facts.name not in IN_PACKAGE:
            raise UsageError(
                f"{store.path} was made from a directory named {facts.name!r}; where that is, a store does not know.",
                advice="Pass its path as source; missing='fetch' reads from it what the store lacks.",
                path=store.path,
            )
        source = facts.name
    need_checkpoint(source, "Give the checkpoint that the store was made from as source.")
    is_directory = model_path(source).is_dir()
    place = Location.find(
        source,
        revision=None if is_directory else facts.revision,
        offline=offline,
        reader=None if is_directory else RangeReader(rate=rate),
        rate=rate,
    )
    checkpoint = Checkpoint.open(place, component=model.component)
    integrity = checkpoint.integrity if is_directory else checkpoint.integrity_given(model.identity)
    if integrity != facts.integrity or type(checkpoint.skeleton).__name__ != model.class_name:
        made_from = facts.name if facts.revision is None else f"{facts.name} at {facts.revision}"
        raise LoadError(
            f"{source} is not the checkpoint that {store.path} was made from ({made_from}): its fingerprint is "
            f"{integrity}, not {facts.integrity}.",
            advice="Pass the very checkpoint as source: the same repository, or an unchanged copy of the directory.",
            path=store.path,
            expected=facts.integrity,
            got=integrity,
        )
    return CheckpointOrigin(checkpoint)
