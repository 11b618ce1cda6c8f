"""Is every tensor here bit for bit what it is in the checkpoint?"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from coterie.checkpoint import TensorInfo, read_header
from coterie.errors import CheckpointFileError, ReadError, UnsupportedError
from coterie.extraction.dense import as_stored, dense_tensors, tensor_pieces
from coterie.extraction.progress import Meter
from coterie.extraction.quantising import SchemedExperts
from coterie.files.regular import read_bounded
from coterie.inspection.calibrated_records import CalibratedRecords
from coterie.origins import Origin
from coterie.quant import SCHEMES
from coterie.records import RecordReader
from coterie.spec import ExpertKey, RecordLayout
from coterie.spec.encodings import NATIVE, schemes_named
from coterie.store import DenseTensor, Problem, Store
from coterie.store.names import CARD, FIT_FACTS, MAX_SIDE_FILE_BYTES
from coterie.store.verification import ProblemKind

_THREADS = 2


class Comparison:
    """Compares a model with a checkpoint, collecting problems.

    Attributes:
        problems: What differs so far.
        tensors: Tensors outside experts that were compared.
        experts: Experts that were compared.
    """

    def __init__(self, origin: Origin, meter: Meter) -> None:
        self.problems: list[Problem] = []
        self.tensors = 0
        self.experts = 0
        self._origin = origin
        self._meter = meter
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def store(self, store: Store) -> None:
        """Compares a store: dense tensors, the experts that it has, and the files copied beside them."""
        self._origin.download(self._origin.model.keymap.dense)
        found: dict[str, TensorInfo] = {}
        for path in store.dense_files:
            try:
                found.update(read_header(path))
            except CheckpointFileError as error:
                self._add("malformed", path.name, "the file itself", error.message)
        # What is lossy is quantised again: the same weights give the same bytes.
        wanted = dense_tensors(self._origin, store.manifest.dense_schemes)
        self._compare_tensors(found, {tensor.name: tensor for tensor in wanted})
        self._compare_experts(store)
        self._compare_files(store)

    def checkpoint(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Compares all tensors of another checkpoint, experts too, by name."""
        self._origin.download(self._origin.tensors)
        self._compare_tensors(tensors, {info.name: as_stored(info) for info in self._origin.tensors.values()})

    def _compare_tensors(self, found: Mapping[str, TensorInfo], wanted: Mapping[str, DenseTensor]) -> None:
        for name in sorted(wanted.keys() - found.keys()):
            self._add("missing", "", name, f"the tensor {name!r} of the checkpoint is not there")
        for name in sorted(found.keys() - wanted.keys()):
            self._add("foreign", found[name].path.name, name, f"the checkpoint has no tensor {name!r}")
        for name in sorted(wanted.keys() & found.keys()):
            self._compare_tensor(found[name], wanted[name])

    def _compare_tensor(self, found: TensorInfo, wanted: DenseTensor) -> None:
        self.tensors += 1
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            what = f"{found.dtype} {list(found.shape)}, in the checkpoint {wanted.dtype} {list(wanted.shape)}"
            self._add("corrupt", found.path.name, found.name, f"the tensor {found.name!r} is {what}")
            return
        position = 0
        try:
            for ours, theirs in _side_by_side(tensor_pieces(found), wanted.chunks()):
                differs = _first_difference(ours, theirs)
                if differs is not None:
                    what = f"the tensor {found.name!r} differs from the checkpoint at its byte {position + differs}"
                    self._add("corrupt", found.path.name, found.name, what)
                    return
                position += len(ours)
                self._meter.advance(len(ours) + len(theirs))
        except CheckpointFileError as error:
            self._add("missing", found.path.name, found.name, error.message)

    def _compare_experts(self, store: Store) -> None:
        known = self._origin.model.banks.keys()
        for bank in sorted(known - store.banks.keys()):
            self._add("missing", "", str(bank), f"the bank {bank} of the checkpoint is not there")
        for bank in sorted(store.banks.keys() - known):
            self._add("foreign", "", str(bank), f"the checkpoint has no bank {bank}")
        keys = [key for key in store.keys() if key.bank_key in known]
        unknown = next((key for key in keys if not schemes_named(store.scheme(key)) <= {NATIVE, *SCHEMES}), None)
        if unknown is not None:
            raise UnsupportedError(
                f"Expert {unknown} is stored as {store.scheme(unknown)!r}, which this version does not know.",
                advice="Compare with the version of Coterie that made the store.",
                key=unknown,
            )
        wanted = SchemedExperts(self._origin, store.scheme)
        ours, theirs = RecordReader(store), RecordReader(wanted)
        calibrated = CalibratedRecords(store, self._origin)
        self._origin.download(name for key in keys for name in self._origin.names_of(key))
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                chosen = [key for key in keys if calibrated.has(key)]
                rounded = [key for key in keys if not calibrated.has(key)]
                for _ in pool.map(lambda key: self._measure_expert(store, key, calibrated), chosen):
                    pass
                for _ in pool.map(
                    lambda key: self._compare_expert(store, key, wanted.layout(key), ours, theirs), rounded
                ):
                    pass
        finally:
            for reader in (ours, theirs, wanted, calibrated):
                reader.close()

    def _compare_expert(
        self,
        store: Store,
        key: ExpertKey,
        wanted: RecordLayout,
        ours: RecordReader,
        theirs: RecordReader,
    ) -> None:
        file = store.manifest.places[key][0].file
        place = f"expert {key.expert:05d}"
        layout = store.layout(key)
        if layout.fields != wanted.fields:
            self._add("corrupt", file, place, f"expert {key} has other fields, shapes or dtypes than the checkpoint")
            return
        here, there = self._records(layout.nbytes)
        try:
            ours.read(key, layout, here)
            theirs.read(key, layout, there)
        except ReadError as error:
            self._add("missing", file, place, error.message)
            return
        differs = _first_difference(here, there)
        with self._lock:
            self.experts += 1
        if differs is not None:
            self._add("corrupt", file, place, f"expert {key} differs from the checkpoint: {_where(layout, differs)}")
        self._meter.advance(2 * layout.nbytes)

    def _measure_expert(self, store: Store, key: ExpertKey, calibrated: CalibratedRecords) -> None:
        """Codes that were chosen by calibration cannot be chosen again; what they are off by can be measured again."""
        file = store.manifest.places[key][0].file
        place = f"expert {key.expert:05d}"
        try:
            problem = calibrated.problem(key)
        except ReadError as error:
            self._add("missing", file, place, error.message)
            return
        with self._lock:
            self.experts += 1
        if problem is not None:
            self._add("corrupt", file, place, f"expert {key} {problem}")
        self._meter.advance(2 * store.layout(key).nbytes)

    def _compare_files(self, store: Store) -> None:
        originals = self._origin.side_files()
        changed = self._origin.changed_files()
        fitted = FIT_FACTS in {facts.file for facts in store.manifest.files}
        for facts in store.manifest.files:
            if fitted and facts.file in (FIT_FACTS, CARD):
                continue  # they say what was made of the checkpoint
            if facts.file not in originals and facts.file not in changed:
                self._add("foreign", facts.file, "the file itself", f"the checkpoint has no file {facts.file!r}")
                continue
            try:
                found = read_bounded(store.path / facts.file, MAX_SIDE_FILE_BYTES)
                # A store made before it stated its dtype has the file as it was.
                same = found == changed.get(facts.file) or (
                    facts.file in originals and found == read_bounded(originals[facts.file], MAX_SIDE_FILE_BYTES)
                )
            except OSError as error:
                self._add("missing", facts.file, "the file itself", f"it cannot be read: {error.strerror}")
                continue
            if not same:
                self._add("corrupt", facts.file, "the file itself", f"{facts.file!r} differs from the checkpoint's")

    def _records(self, nbytes: int) -> tuple[memoryview, memoryview]:
        """Two page-aligned buffers of this thread."""
        pair = getattr(self._buffers, "pair", None)
        if pair is None or len(pair[0]) < nbytes:
            pair = self._buffers.pair = (memoryview(mmap.mmap(-1, nbytes)), memoryview(mmap.mmap(-1, nbytes)))
        return pair[0][:nbytes], pair[1][:nbytes]

    def _add(self, kind: ProblemKind, file: str, place: str, message: str) -> None:
        with self._lock:
            self.problems.append(Problem(kind=kind, file=file, place=place, rule="", message=message))


def _side_by_side(
    ours: Iterable[memoryview], theirs: Iterable[memoryview | bytes]
) -> Iterator[tuple[memoryview, memoryview]]:
    """Two runs of as many bytes in pieces of equal size, however either is cut."""
    others = iter(theirs)
    rest = memoryview(b"")
    for piece in ours:
        while len(piece):
            if not len(rest):
                rest = memoryview(next(others)).cast("B")
                continue
            count = min(len(piece), len(rest))
            yield piece[:count], rest[:count]
            piece, rest = piece[count:], rest[count:]
    # Quantised codes are followed by their scales only once they have come to their end.
    next(others, None)


def _first_difference(one: memoryview, other: memoryview) -> int | None:
    """Index of the first byte that differs; both have the same length."""
    a, b = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if np.array_equal(a, b):
        return None
    return int(np.argmax(a != b))


def _where(layout: RecordLayout, position: int) -> str:
    for field in layout.fields:
        if field.offset <= position < field.offset + field.nbytes:
            return f"byte {position - field.offset} of {field.name}"
    return f"byte {position}, padding"
