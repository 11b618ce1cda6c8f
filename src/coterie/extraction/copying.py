"""Copies experts and dense tensors from an origin into a store: reading, hashing and writing overlap.

Every worker takes one expert at a time through its three steps in a buffer of its own; while one waits for the
source's disk, another hashes and a third writes. All three steps release Python's lock. The next bank is begun while
the last expert of the one before is still being made durable.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal

from coterie.errors import CoterieError
from coterie.extraction.calibrating import Calibrator, Stopped
from coterie.extraction.progress import Meter
from coterie.extraction.quantising import SchemedExperts, SchemeOf, one_scheme
from coterie.extraction.spans import SCRATCH_BYTES, SpanReader
from coterie.origins import Origin
from coterie.records import RecordReader
from coterie.records.remote import expecting
from coterie.spec import RECORD_ALIGNMENT, BankKey, ExpertKey, round_up
from coterie.spec.encodings import NATIVE
from coterie.store import BankWriter, DenseTensor, StoreWriter

if TYPE_CHECKING:
    import torch

    from coterie.quant import StoredMatrix

BUFFER_BYTES = 512 * 2**20
"""What all workers' buffers may take, unless one expert alone takes more; the process takes about 350 MiB besides, and
130 MiB more where it reads over a network."""

_WORKERS = 6
_DECODING_COPIES = 3
"""A record that must be computed is in memory as the checkpoint's tensor, as transformers' result and as a record."""


@dataclass(slots=True)
class _OpenBank:
    """A bank being written; the worker that finishes its last expert commits it."""

    writer: BankWriter
    remaining: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_last(self) -> bool:
        with self.lock:
            self.remaining -= 1
            return self.remaining == 0


_Job = tuple[_OpenBank, ExpertKey] | Literal["dense"]
"""An expert of an open bank, or all dense tensors."""


def worker_count(origin: Origin, limit: int = _WORKERS, *, computed: bool = False) -> int:
    """How many experts may be in memory at once, so that the buffers stay within bounds whatever their size.

    Args:
        origin: Where they come from.
        limit: The most.
        computed: Whether their records are computed rather than copied.
    """
    largest = 1
    for key, bank in origin.model.banks.items():
        nbytes = bank.layout.nbytes
        plain = not computed and origin.extents(key.expert(0)) is not None
        largest = max(largest, nbytes + scratch_nbytes(nbytes) if plain else _DECODING_COPIES * nbytes)
    return max(1, min(limit, BUFFER_BYTES // largest))


def scratch_nbytes(record_nbytes: int) -> int:
    """Bytes of the buffer beside a record: room for its span with a page at either end, within bounds."""
    return min(SCRATCH_BYTES, round_up(record_nbytes, RECORD_ALIGNMENT) + 32 * RECORD_ALIGNMENT)


class Copier:
    """Writes everything that a writer misses.

    Args:
        origin: Where the bytes come from.
        writer: The opened store.
        dense: Everything that is not an expert.
        meter: Told about every byte written.
        workers: Threads.
        scheme: In which experts are written: one for all, or for each.
        calibrator: Chooses the codes of experts that are quantised, with one worker; None to round to nearest.
    """

    def __init__(
        self,
        origin: Origin,
        writer: StoreWriter,
        dense: tuple[DenseTensor, ...],
        meter: Meter,
        *,
        workers: int,
        scheme: str | SchemeOf = NATIVE,
        calibrator: Calibrator | None = None,
    ) -> None:
        assert calibrator is None or workers == 1, "it knows of one expert at a time"
        self._calibrator = calibrator
        self._origin = origin
        self._writer = writer
        self._dense = dense
        self._meter = meter
        self._workers = workers
        self._reader = SpanReader()
        self._experts = SchemedExperts(origin, one_scheme(scheme), calibrator)
        self._decoder = RecordReader(self._experts, verify=True)
        self._open: list[_OpenBank] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Copies; on any failure, Ctrl-C included, finished files stay and unfinished ones are removed.

        Raises:
            CheckpointFileError: If the source cannot be read.
            StoreError: If the store cannot be written.
        """
        jobs = self._jobs()
        threads = [
            threading.Thread(target=self._work, args=(jobs,), name=f"coterie-extract-{number}", daemon=True)
            for number in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            self._fail(error)
            for thread in threads:
                thread.join()
        finally:
            self._reader.close()
            self._decoder.close()
            self._experts.close()
        if self._error is not None:
            self._abandon(self._error)
            raise self._error

    def _jobs(self) -> Iterator[_Job]:
        """What is to be done, in order. A bank is opened when its first expert's turn comes."""
        if not self._writer.dense_done:
            yield "dense"
        for key in self._banks():
            experts = self._writer.missing_experts(key)
            self._origin.download(name for expert in experts for name in self._origin.names_of(key.expert(expert)))
            bank = _OpenBank(self._writer.bank(key), len(experts))
            bank.writer.__enter__()
            self._open.append(bank)
            ordered: Iterable[int] = sorted(experts, key=lambda expert: self._place(key.expert(expert)))
            if self._calibrator is not None:
                computed = [expert for expert in ordered if not self._experts.is_there(key.expert(expert))]
                copied = [expert for expert in ordered if self._experts.is_there(key.expert(expert))]
                weights = partial(self._weights, key)
                ordered = chain(copied, self._calibrator.order(key, computed, weights, self._stop.is_set))
            for expert in ordered:
                yield bank, key.expert(expert)

    def _banks(self) -> Iterable[BankKey]:
        """The banks with missing experts; as they lie in the source where that is read over a network.

        What passes by in the order of its file can be compared with the file's checksum.
        """
        missing = self._writer.missing_banks()
        if self._origin.reader is None:
            return missing
        return sorted(missing, key=self._first_place)

    def _first_place(self, bank: BankKey) -> tuple[str, int]:
        experts = self._writer.missing_experts(bank)
        infos = (self._origin.tensors[name] for e in experts for name in self._origin.names_of(bank.expert(e)))
        return min((info.path.name, info.offset) for info in infos)

    def _weights(self, bank: BankKey, expert: int) -> dict[str, tuple[StoredMatrix, torch.Tensor]]:
        return self._experts.weights(bank.expert(expert))

    def _place(self, key: ExpertKey) -> tuple[str, int]:
        """Where an expert begins in the source: read in that order, the disk is read in order."""
        extents = self._origin.extents(key)
        return (str(extents[0].source.place), extents[0].offset) if extents else ("", key.expert)

    def _work(self, jobs: Iterator[_Job]) -> None:
        planned = (one.layout.nbytes for bank in self._writer.plan.banks for one in bank.experts)
        largest = max(planned, default=RECORD_ALIGNMENT)
        # Anonymous mappings start on a page, as direct reads and writes need, and take no memory until used.
        buffer, scratch = mmap.mmap(-1, largest), mmap.mmap(-1, scratch_nbytes(largest))
        try:
            while not self._stop.is_set():
                with self._lock:
                    job = next(jobs, None)
                if job is None:
                    return
                self._do(job, memoryview(buffer), memoryview(scratch))
        except BaseException as error:
            self._fail(error)
        finally:
            with suppress(BufferError):
                # An exception's traceback may still hold a view of them.
                buffer.close()
                scratch.close()

    def _do(self, job: _Job, buffer: memoryview, scratch: memoryview) -> None:
        if job == "dense":
            names = sorted(
                name
                for name in self._origin.stored_names(self._origin.model.keymap.dense)
                if name in self._origin.tensors
            )
            with expecting(self._origin, names):
                self._writer.write_dense(self._metered())
            return
        bank, key = job
        layout = self._experts.layout(key)
        record = buffer[: layout.nbytes]
        extents = self._experts.extents(key)
        if extents is None or self._experts.checksum(key) is not None:
            self._decoder.read(key, layout, record)
        else:
            self._reader.read(key, layout, extents, record, scratch)
        bank.writer.write(key.expert, record, errors=self._experts.take_errors(key))
        self._meter.advance(layout.nbytes)
        if bank.is_last():
            with self._lock:
                self._open.remove(bank)
            bank.writer.__exit__(None)

    def _metered(self) -> Iterator[DenseTensor]:
        """The dense tensors, each telling the meter about its pieces, and ending early when the work has failed."""
        for tensor in self._dense:
            yield replace(tensor, chunks=partial(self._pieces, tensor))

    def _pieces(self, tensor: DenseTensor) -> Iterator[memoryview | bytes]:
        for piece in tensor.chunks():
            if self._stop.is_set():
                raise Stopped
            yield piece
            self._meter.advance(len(piece))

    def _fail(self, error: BaseException) -> None:
        # First: who holds the lock may be a calibrator, which gives up when it sees this.
        self._stop.set()
        if self._origin.reader is not None:
            self._origin.reader.stop()
        with self._lock:
            if self._error is None or _is_stopped(self._error):
                self._error = error

    def _abandon(self, error: BaseException) -> None:
        for bank in self._open:
            with suppress(CoterieError, OSError):
                bank.writer.__exit__(type(error))
        self._open.clear()


def _is_stopped(error: BaseException) -> bool:
    """Whether an error only says that work has ended by another one."""
    return isinstance(error, Stopped) or (isinstance(error, CoterieError) and error.facts.get("stopped") is True)
