"""The levels that the matrices of a model's experts can have, with bytes and errors: measured, expert by expert."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from coterie.extraction.quantising import matrix_names, stored_matrix
from coterie.origins import Origin
from coterie.quant import SCHEMES, StoredMatrix, dequantise
from coterie.quant.dtypes import record_tensors
from coterie.records import RecordReader
from coterie.spec import BankKey, ExpertKey, RecordLayout
from coterie.spec.encodings import USUAL_SCHEMES, matrix_schemes
from coterie.spec.parameters import StoredParameter, plan_record

SAMPLE = 2**16
"""About so many weights of a matrix are measured, in whole rows: the error of more would be the same within 1 %."""

_DIGITS = 6
"""Of an error. The last ones depend on the order of a sum, and with it the choice would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLevel:
    """One way of storing a matrix.

    Attributes:
        scheme: Its name.
        nbytes: Bytes of the matrix, scales included.
        error: Squared error of the weights, as a share of their squares.
    """

    scheme: str
    nbytes: int
    error: float


Measured = dict[str, tuple[MeasuredLevel, ...]]
"""Matrix → its levels, the last of which is how it lies in the origin."""


class LevelMeasure:
    """Measures what each level would cost each matrix of an expert. Reads one expert at a time.

    Levels are the lossy schemes that take fewer bytes than what there is, and that itself. Of what is lossy already,
    errors are those against what is left of it.

    Args:
        origin: Where experts come from.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._reader = RecordReader(origin, verify=True)
        self._plans: dict[tuple[BankKey, RecordLayout], dict[str, StoredParameter]] = {}

    def close(self) -> None:
        """Closes the open files."""
        self._reader.close()

    def measure(self, keys: Sequence[ExpertKey]) -> Iterator[tuple[ExpertKey, Measured]]:
        """The levels of these experts, in this order.

        Raises:
            QuantisationError: If a weight is not finite.
            ReadError: If a file cannot be read.
        """
        largest = max((self._origin.layout(key).nbytes for key in keys), default=mmap.PAGESIZE)
        buffer = mmap.mmap(-1, largest)
        try:
            for key in keys:
                layout = self._origin.layout(key)
                record = memoryview(buffer)[: layout.nbytes]
                self._reader.read(key, layout, record)
                yield key, self._levels(key, layout, record)
        finally:
            with suppress(BufferError):
                # Tensors may still view it; it goes with the last of them.
                buffer.close()

    def _levels(self, key: ExpertKey, layout: RecordLayout, record: memoryview) -> Measured:
        bank = self._origin.model.banks[key.bank_key].bank
        place = key.bank_key, layout
        if place not in self._plans:
            self._plans[place] = plan_record(layout, bank.parameters, str(bank.key))
        tensors = record_tensors(record, layout)
        names = matrix_names(bank)
        found: Measured = {}
        for name, scheme in zip(names, matrix_schemes(self._origin.scheme(key), len(names)), strict=True):
            stored = self._plans[place][name]
            there = sum(layout.fields[position].nbytes for position in stored.positions)
            value = dequantise(stored, tensors, bank.dtypes[name])
            matrices = (stored_matrix(bank, name, one) for one in (SCHEMES[name] for name in USUAL_SCHEMES))
            levels = [_measure(matrix, value) for matrix in matrices if _nbytes(matrix) < there]
            found[name] = (*levels, MeasuredLevel(scheme=scheme, nbytes=there, error=0.0))
        return found


def _nbytes(matrix: StoredMatrix) -> int:
    return matrix.scheme.form.nbytes(*matrix.rows_and_columns)


def _measure(matrix: StoredMatrix, value: torch.Tensor) -> MeasuredLevel:
    rows, columns = matrix.rows_and_columns
    weights = value.t() if matrix.transposed else value
    some = weights[:: max(1, rows * columns // SAMPLE)].contiguous()
    again = matrix.scheme.dequantise(matrix.scheme.quantise(some), columns, torch.float32)
    # By numpy: so small a sum is not worth the threads that torch would wake.
    exact = some.float().numpy().astype(np.float64)
    square = float(np.square(exact).sum())
    off = float(np.square(again.numpy() - exact).sum())
    error = float(f"{off / square:.{_DIGITS}g}") if square > 0 else 0.0
    return MeasuredLevel(scheme=matrix.scheme.name, nbytes=_nbytes(matrix), error=error)
