"""Whether records whose codes were chosen by calibration are as far from the checkpoint's weights as they say."""

from __future__ import annotations

import mmap

import torch

from coterie.origins import Origin
from coterie.quant import dequantise
from coterie.quant.calibrated.errors import squares
from coterie.quant.dtypes import record_tensors
from coterie.records import RecordReader
from coterie.spec import ExpertKey, RecordLayout
from coterie.spec.parameters import StoredParameter, plan_record
from coterie.store import Store
from coterie.store.manifest import PARTS_OF_ONE

_TOLERANCE = 1e-5
"""Share by which an error may differ: sums are rounded in another way on another machine."""


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
        off = whole = 0.0
        for name, shape in bank.parameters.items():
            here, there = ours_by_name[name], theirs_by_name[name]
            if here.shape != shape:
                return f"has {name} in the shape {list(here.shape)}, the checkpoint has {list(shape)}"
            weights = dequantise(there, theirs, bank.dtypes[name])
            if here.encoding is None:
                if not torch.equal(ours[here.positions[0]], weights):
                    return f"differs from the checkpoint: {name}"
                continue
            weights = weights.float()
            off += squares(dequantise(here, ours, torch.float32) - weights)
            whole += squares(weights)
        found = round(off / whole * PARTS_OF_ONE) if whole > 0 else 0
        if abs(found - errors.weight) > 2 + _TOLERANCE * errors.weight:
            share = 1 / PARTS_OF_ONE
            return (
                f"is not as far from the checkpoint as its record says: a squared error of {found * share:.3g} of the "
                f"weights, not {errors.weight * share:.3g}"
            )
        return None

    def _read(self, reader: RecordReader, key: ExpertKey, layout: RecordLayout) -> _Fields:
        buffer = memoryview(mmap.mmap(-1, layout.nbytes))
        reader.read(key, layout, buffer)
        tensors = record_tensors(buffer, layout)
        bank = self._origin.model.banks[key.bank_key].bank
        return tensors, plan_record(layout, bank.parameters, str(bank.key))
