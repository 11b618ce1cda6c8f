"""Writing the experts of one bank: any order, any number of threads, one file that appears whole or not at all."""

from __future__ import annotations

import threading

import xxhash

from coterie.errors import UsageError
from coterie.spec import BankKey, RecordLayout
from coterie.store.disk import Disk, NewFile
from coterie.store.journal import FinishedFile, Journal
from coterie.store.manifest import RecordErrors
from coterie.store.padding import first_nonzero
from coterie.store.plan import SegmentPlan


class BankWriter:
    """Takes the records of one bank; leaving the ``with`` block without an exception commits them.

    Raises:
        UsageError: On commit, if experts of the plan were not written.
        DiskSpaceError: If the file does not fit.
        StoreError: If it cannot be written.
    """

    def __init__(self, disk: Disk, journal: Journal, plan: SegmentPlan) -> None:
        self._disk = disk
        self._journal = journal
        self._plan = plan
        self._records = {record.expert: record for record in plan.segment.records}
        self._padding: dict[str, tuple[tuple[int, int], ...]] = {
            layout.name: layout.padding for layout in plan.layouts.values()
        }
        self._checksums: dict[int, str] = {}
        self._errors: dict[int, RecordErrors] = {}
        self._started: set[int] = set()
        self._lock = threading.Lock()
        self._file: NewFile | None = None

    @property
    def key(self) -> BankKey:
        """The bank."""
        return self._plan.key

    @property
    def experts(self) -> tuple[int, ...]:
        """Ids to be written, ascending, in file order."""
        return tuple(self._records)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._plan.segment.nbytes

    def layout(self, expert: int) -> RecordLayout:
        """The layout of this expert's record."""
        return self._plan.layouts[self._known(expert)]

    def scheme(self, expert: int) -> str:
        """The scheme of this expert."""
        return self._records[self._known(expert)].scheme

    def __enter__(self) -> BankWriter:
        self._file = self._disk.begin(self._plan.segment.file, self._plan.segment.nbytes, direct=True)
        try:
            self._file.write(memoryview(self._plan.header), 0)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *rest: object) -> None:
        file = self._opened()
        with file:
            if exception_type is None:
                self._commit(file)
        self._file = None

    def write(
        self, expert: int, record: memoryview, checksum: str | None = None, errors: RecordErrors | None = None
    ) -> None:
        """Writes one record. Safe to call from several threads; the buffer is free again when it returns.

        Args:
            expert: Id within the bank.
            record: Exactly the bytes of the layout, padding zero.
            checksum: Its xxh3-128 as 32 hex digits, if the caller has it already.
            errors: What it is off by, if its codes were chosen by calibration.

        Raises:
            UsageError: If the expert is not planned or was written before, or the record has another size or
                padding that is not zero.
        """
        file = self._opened()
        place = self._records[self._known(expert)]
        view = record.cast("B") if record.format != "B" or record.ndim != 1 else record
        if len(view) != place.nbytes:
            raise UsageError(
                f"The record of expert {self.key.expert(expert)} has {len(view)} bytes, its layout has {place.nbytes}.",
                expected=place.nbytes,
                got=len(view),
            )
        for begin, end in self._padding[place.layout]:
            if first_nonzero(view[begin:end]) is not None:
                raise UsageError(
                    f"The record of expert {self.key.expert(expert)} has padding at {begin} to {end} that is not zero.",
                    advice="Start from a zeroed buffer: bytes outside the fields are part of the checksum.",
                )
        with self._lock:
            if expert in self._started:
                raise UsageError(f"Expert {self.key.expert(expert)} is written twice.")
            self._started.add(expert)
        digest = checksum or str(xxhash.xxh3_128_hexdigest(view))
        file.write(view, place.offset, direct=True)
        with self._lock:
            self._checksums[expert] = digest
            if errors is not None:
                self._errors[expert] = errors

    def _commit(self, file: NewFile) -> None:
        unwritten = [expert for expert in self._records if expert not in self._checksums]
        if unwritten:
            raise UsageError(
                f"{len(unwritten)} experts of {self.key} were not written, the first is {unwritten[0]}.",
                expected=len(self._records),
                got=len(self._checksums),
            )
        file.publish()
        segment = self._plan.segment
        checksums = tuple(self._checksums[expert] for expert in self._records)
        errors = tuple(self._errors.get(expert) for expert in self._records) if self._errors else ()
        self._journal.append(FinishedFile(file=segment.file, nbytes=segment.nbytes, checksums=checksums, errors=errors))

    def _known(self, expert: int) -> int:
        if expert not in self._records:
            raise UsageError(f"Expert {self.key.expert(expert)} is not to be written.", got=expert)
        return expert

    def _opened(self) -> NewFile:
        if self._file is None:
            raise UsageError(f"The writer of {self.key} is used outside its 'with' block.")
        return self._file
