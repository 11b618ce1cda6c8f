"""Making a store, or adding experts to one: resumable after a crash at any moment, byte for byte the same result."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from coterie.errors import CoterieError, StoreError, UsageError
from coterie.files.regular import read_bounded
from coterie.spec import BankKey
from coterie.store import names
from coterie.store.bank_writer import BankWriter
from coterie.store.continuation import begin_journal, check_growth, refuse_foreign
from coterie.store.dense_writer import (
    DENSE_SHARD_LIMIT,
    DenseTensor,
    finished_shards,
    plan_shards,
    write_shards,
    write_whole,
)
from coterie.store.disk import Disk
from coterie.store.journal import FinishedFile, Journal
from coterie.store.lock import WriterLock
from coterie.store.manifest import Bank, FileFacts, Manifest, Segment
from coterie.store.manifest_file import is_store, load_manifest
from coterie.store.manifest_json import manifest_bytes, parse_manifest
from coterie.store.plan import StorePlan, plan_segments
from coterie.store.syscalls import SystemCalls


class StoreWriter:
    """Writes a store. Use :meth:`open` in a ``with`` statement; the manifest, written by :meth:`finish`, makes it one.

    What is written becomes visible whole or not at all. After an interruption open the same path with an equal plan:
    :meth:`missing_banks`, :attr:`dense_done` and :meth:`missing_files` say what is left. Opening a finished store with
    a plan that has more experts grows it: existing files are never touched, and until :meth:`finish` the old store
    stays valid. Methods may be called from several threads, except ``finish`` and ``close``.
    """

    def __init__(
        self, disk: Disk, lock: WriterLock, plan: StorePlan, base: Manifest | None, journal: Journal | None
    ) -> None:
        self.plan = plan
        self._disk = disk
        self._lock = lock
        self._base = base
        self._journal = journal
        self._segments = plan_segments(plan, base)

    @classmethod
    def open(
        cls, path: Path | str, plan: StorePlan, *, restart: bool = False, calls: SystemCalls | None = None
    ) -> StoreWriter:
        """Starts, resumes or grows the store at ``path`` and locks it against other writers.

        Args:
            path: The store's directory; made if need be.
            plan: What the store is to hold.
            restart: Discard an unfinished store that was begun with another plan instead of refusing.
            calls: The system calls; tests pass one that fails.

        Raises:
            UsageError: If the plan breaks the store format.
            StoreBusyError: If another process is writing the store.
            StoreFormatError: If the finished store there is damaged.
            StoreError: If the directory holds something else, an unfinished store with another plan, or a store of
                another model or source; or if it cannot be written.
        """
        parts = plan.digests()
        disk = Disk(Path(path).absolute(), calls)
        refuse_foreign(disk.root)
        disk.make_directory(disk.root)
        lock = WriterLock(disk)
        try:
            base, digest = load_manifest(disk.root) if is_store(disk.root) else (None, "")
            if base is not None:
                if restart:
                    raise StoreError(
                        f"{disk.root} is a finished store; it is not discarded.",
                        advice="Remove the directory first, or open it without 'restart' to add experts.",
                        path=disk.root,
                    )
                check_growth(disk.root, base, plan)
            needed = base is None or bool(plan_segments(plan, base))
            journal = begin_journal(disk, plan, parts, base, digest, restart=restart, needed=needed)
            return cls(disk, lock, plan, base, journal)
        except BaseException:
            with suppress(CoterieError):
                lock.release()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._disk.root

    @property
    def growing(self) -> bool:
        """Whether a finished store is being added to: its dense part and side files are there already."""
        return self._base is not None

    @property
    def base(self) -> Manifest | None:
        """The manifest of the finished store that is being added to."""
        return self._base

    @property
    def planned(self) -> dict[BankKey, tuple[int, ...]]:
        """The experts that this work adds, by bank, whether they are written already or not."""
        return {key: tuple(record.expert for record in plan.segment.records) for key, plan in self._segments.items()}

    def missing_banks(self) -> tuple[BankKey, ...]:
        """Banks with experts that are still to be written, in ascending order of key."""
        return tuple(key for key in self._segments if self._finished_segment(key) is None)

    def missing_experts(self, key: BankKey) -> tuple[int, ...]:
        """Ids that the writer of this bank expects, ascending; empty if the bank needs nothing."""
        if key not in self._segments or self._finished_segment(key) is not None:
            return ()
        return tuple(record.expert for record in self._segments[key].segment.records)

    def missing_nbytes(self) -> int:
        """Bytes of the expert files that are still to be written."""
        return sum(self._segments[key].segment.nbytes for key in self.missing_banks())

    def bank(self, key: BankKey) -> BankWriter:
        """A context manager that takes the records of one missing bank and commits them together.

        Raises:
            UsageError: If nothing is missing from this bank.
        """
        if not self.missing_experts(key):
            raise UsageError(f"No expert of {key} is missing.", bank=key)
        return BankWriter(self._disk, self._need_journal(), self._segments[key])

    def discard(self, keys: Iterable[BankKey], *, dense: bool) -> None:
        """Removes what is finished of a work that is not: these banks, and the dense shards if so said, are missing.

        What belongs to a finished store that is being added to stays.
        """
        for key in keys:
            if self._finished_segment(key) is not None:
                self._disk.remove(self._segments[key].segment.file)
        if dense and self._base is None:
            for path in sorted(self.path.glob("dense*")):
                if names.is_dense_file(path.name):
                    self._disk.remove(path.name)

    @property
    def dense_done(self) -> bool:
        """Whether all dense shards (and their index) are written."""
        return self._base is not None or finished_shards(self._need_journal()) is not None

    def write_dense(self, tensors: Iterable[DenseTensor], *, shard_limit: int = DENSE_SHARD_LIMIT) -> None:
        """Writes everything that is not an expert; shards that are finished are skipped.

        Args:
            tensors: All of them, in any order. A store that grows has them already: nothing is done.
            shard_limit: Bytes of tensors per file.

        Raises:
            UsageError: If a dtype is unknown, a name occurs twice or there are none.
            ExtractionError: If a tensor gives more or fewer bytes than its shape needs.
            DiskSpaceError: If a shard does not fit.
        """
        if self._base is not None:
            return
        shards = plan_shards(tensors, shard_limit)
        wanted = {shard.file for shard in shards} | ({names.DENSE_INDEX} if len(shards) > 1 else set())
        for path in sorted(self.path.glob("dense*")):
            if names.is_dense_file(path.name) and path.name not in wanted:
                self._disk.remove(path.name)
        write_shards(self._disk, self._need_journal(), shards)

    def missing_files(self) -> tuple[str, ...]:
        """Side files of the plan that are not written yet."""
        if self._journal is None or self._base is not None:
            return ()
        return tuple(name for name in sorted(self.plan.files) if self._journal.finished(name) is None)

    def write_file(self, name: str, data: bytes) -> None:
        """Writes a side file of the plan. A store that grows has it already: nothing is done.

        Raises:
            UsageError: If the plan has no such file.
        """
        if name not in self.plan.files:
            raise UsageError.unknown("side file", name, self.plan.files)
        if self._base is None:
            write_whole(self._disk, self._need_journal(), name, data)

    def copy_file(self, source: Path, name: str | None = None) -> None:
        """Copies a side file of the plan, by default under its own name.

        Raises:
            UsageError: If the plan has no such file.
            StoreError: If the source cannot be read.
        """
        try:
            data = read_bounded(source, names.MAX_SIDE_FILE_BYTES)
        except OSError as error:
            raise StoreError(f"{source} cannot be read: {error.strerror}.", path=source) from error
        self.write_file(name or source.name, data)

    def finish(self) -> Manifest:
        """Writes the manifest and removes every trace of the work; the directory is a store from here on.

        Raises:
            UsageError: If banks, dense tensors or side files of the plan are missing.
        """
        if self._journal is None:
            assert self._base is not None, "a new store always has a journal"
            return self._base
        manifest = self._manifest()
        data = manifest_bytes(manifest)
        # Reading our own bytes back as a stranger's: a manifest that breaks a rule is never published.
        checked = parse_manifest(data, self._disk.path(names.MANIFEST))
        self._disk.write(names.MANIFEST, data)
        self._base = checked
        self._journal.close()
        self._journal = None
        self._segments = {}
        self._disk.remove(names.JOURNAL)
        if self._disk.path(names.RECEIVED).exists():
            self._disk.remove(names.RECEIVED)
        self._disk.sync(self.path)
        return checked

    def close(self) -> None:
        """Lets other writers in. What is finished stays; an unfinished store is resumed by opening it again."""
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    def _need_journal(self) -> Journal:
        if self._journal is None:
            raise UsageError(f"The store {self.path} is finished; there is nothing to write.")
        return self._journal

    def _finished_segment(self, key: BankKey) -> FinishedFile | None:
        return None if self._journal is None else self._journal.finished(self._segments[key].segment.file)

    def _manifest(self) -> Manifest:
        missing = [*map(str, self.missing_banks()), *self.missing_files()]
        if not self.dense_done:
            missing.append("the dense tensors")
        if missing:
            raise UsageError(
                f"{self.path} cannot be finished: {len(missing)} parts are missing, the first is {missing[0]}.",
                missing=missing,
            )
        banks = tuple(self._bank(bank) for bank in self._all_banks())
        used = {record.layout for bank in banks for record in bank.records.values()}
        layouts = {**(self._base.layouts if self._base else {}), **self.plan.layouts}
        layouts = {name: layout for name, layout in layouts.items() if name in used}
        if self._base is not None:
            calibration = self._base.calibration or self.plan.calibration
            # What came later was not allocated, and is no longer left out.
            return replace(self._base, banks=banks, layouts=layouts, calibration=calibration, allocation=None)
        journal = self._need_journal()
        dense = [_facts(entry) for entry in finished_shards(journal) or ()]
        side = [journal.finished(name) for name in sorted(self.plan.files)]
        return Manifest(
            model=self.plan.model,
            source=self.plan.source,
            layouts=layouts,
            banks=banks,
            dense=tuple(facts for facts in dense if facts.file != names.DENSE_INDEX),
            dense_index=next((facts for facts in dense if facts.file == names.DENSE_INDEX), None),
            files=tuple(_facts(entry) for entry in side if entry is not None),
            ignored=tuple(sorted(self.plan.ignored)),
            dense_schemes=self.plan.dense_schemes,
            calibration=self.plan.calibration,
            allocation=self.plan.allocation,
        )

    def _all_banks(self) -> tuple[Bank, ...]:
        if self._base is not None:
            return self._base.banks
        return tuple(plan.bank(()) for plan in sorted(self.plan.banks, key=lambda bank: bank.key))

    def _bank(self, bank: Bank) -> Bank:
        """The bank with its new segment, if it has one."""
        planned = self._segments.get(bank.key)
        entry = None if planned is None else self._finished_segment(bank.key)
        if planned is None or entry is None:
            return bank
        errors = entry.errors or (None,) * len(entry.checksums)
        records = tuple(
            replace(record, checksum=checksum, errors=off)
            for record, checksum, off in zip(planned.segment.records, entry.checksums, errors, strict=True)
        )
        segment = Segment(file=planned.segment.file, nbytes=planned.segment.nbytes, records=records)
        return replace(bank, segments=(*bank.segments, segment))


def _facts(entry: FinishedFile) -> FileFacts:
    return FileFacts(file=entry.file, nbytes=entry.nbytes, checksum=entry.checksums[0])
