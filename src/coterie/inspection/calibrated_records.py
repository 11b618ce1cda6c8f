"""Whether records whose codes were chosen by calibration are as far from the checkpoint's weights as they say."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from coterie.extraction.quantising import matrix_names
from coterie.hf.banks import ExpertBank
from coterie.origins import Origin
from coterie.quant import StoredMatrix, dequantise, lossy_scheme
from coterie.quant.calibrated.errors import squares
from coterie.quant.dtypes import record_tensors
from coterie.records import RecordReader
from coterie.spec import ExpertKey, RecordLayout
from coterie.spec.encodings import matrix_schemes
from coterie.spec.parameters import StoredParameter, plan_record
from coterie.store import Store
from coterie.store.manifest import WEIGHT_PARTS, weight_share

_TOLERANCE = 1e-9
"""Share by which an error may differ. Codes, weights and their differences have the same bits on every machine. Only
the order in which float64 adds the squares of some millions of them is another, which changes a sum by less than 1e-10.
One code or one scale that is another changes it by about its own share of the matrix, which is more than that."""


_Fields = tuple[tuple[torch.Tensor, ...], dict[str, StoredParameter]]
"""The fields of a record, and which of them make each parameter."""


class CalibratedRecords:
    """Those of a store.

    Args:
        store: The store.
        origin: The checkpoint.
    """

    def __init__(self, store: Store, origin: Origin) -> None:
        self._store = store
        self._origin = origin
        self._ours, self._theirs = RecordReader(store), RecordReader(origin)

    def close(self) -> None:
        """Closes the open files."""
        self._ours.close()
        self._theirs.close()

    def has(self, key: ExpertKey) -> bool:
        """Whether an expert's codes were chosen by calibration."""
        return self._store.manifest.places[key][1].errors is not None

    def problem(self, key: ExpertKey) -> str | None:
        """What is wrong with such an expert's record; None if nothing is.

        Raises:
            ReadError: If it, or the checkpoint's, cannot be read.
        """
        errors = self._store.manifest.places[key][1].errors
        assert errors is not None, "asked for those that have errors"
        bank = self._origin.model.banks[key.bank_key].bank
        ours, ours_by_name = self._read(self._ours, key, self._store.layout(key))
        theirs, theirs_by_name = self._read(self._theirs, key, self._origin.layout(key))
        for name, shape in bank.parameters.items():
            here, there = ours_by_name[name], theirs_by_name[name]
            if here.shape != shape:
                return f"has {name} in the shape {list(here.shape)}, the checkpoint has {list(shape)}"
            weights = dequantise(there, theirs, bank.dtypes[name])
            if name not in errors.weights:
                if not self._is_rounded(key, bank, name, [ours[position] for position in here.positions], weights):
                    return f"differs from the checkpoint: {name}"
                continue
            weights = weights.float()
            off = squares(dequantise(here, ours, torch.float32) - weights)
            found, said = weight_share(off, squares(weights)), errors.weights[name]
            if abs(found - said) > 1 + _TOLERANCE * said:
                share = 1 / WEIGHT_PARTS
                return (
                    f"is not as far from the checkpoint as its record says: {name} has a squared error of "
                    f"{found * share:.9g} of its weights, not {said * share:.9g}"
                )
        return None

    def _is_rounded(
        self, key: ExpertKey, bank: ExpertBank, name: str, parts: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> bool:
        """Whether a parameter whose codes were not chosen is the checkpoint's, rounded to nearest if in a scheme."""
        names = matrix_names(bank)
        scheme = None
        if name in names:
            scheme = lossy_scheme(matrix_schemes(self._store.scheme(key), len(names))[names.index(name)])
        wanted: tuple[torch.Tensor, ...] = (weights,)
        if scheme is not None:
            matrix = StoredMatrix(
                parameter=name, shape=bank.parameters[name], scheme=scheme, transposed="transposed" in bank.variant
            )
            wanted = matrix.quantise(weights)
        return len(parts) == len(wanted) and all(map(torch.equal, parts, wanted))

    def _read(self, reader: RecordReader, key: ExpertKey, layout: RecordLayout) -> _Fields:
        buffer = memoryview(mmap.mmap(-1, layout.nbytes))
        reader.read(key, layout, buffer)
        tensors = record_tensors(buffer, layout)
        bank = self._origin.model.banks[key.bank_key].bank
        return tensors, plan_record(layout, bank.parameters, str(bank.key))
