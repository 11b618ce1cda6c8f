"""What a store of a checkpoint would hold, before it is made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from coterie.checkpoint import Checkpoint, unread_tensors
from coterie.extraction.dense import quantised_linears
from coterie.extraction.planning import ExtractionPlan
from coterie.hf.context import context_shape
from coterie.hf.parts import leaving
from coterie.origins import Origin
from coterie.quant import Scheme
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec.footprint import BankRecords, Footprint


class SchemedLinear(Protocol):
    """The weight of a linear layer that is in a scheme, or would be."""

    @property
    def scheme(self) -> Scheme:
        """The scheme."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its codes and scales."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLinear:
    """The weight of a linear layer that would be in a scheme.

    Attributes:
        scheme: The scheme.
        nbytes: Bytes of its codes and scales.
    """

    scheme: Scheme
    nbytes: int


def planned_linears(origin: Origin, plan: ExtractionPlan) -> dict[str, PlannedLinear]:
    """The weights outside experts that a plan has in a scheme, by name in the checkpoint."""
    kept = origin.packed_dense
    matrices = {
        name: matrix
        for name, matrix in kept.matrices.items()
        if plan.store.dense_schemes.of(kept.parts[name]) == matrix.scheme.name
    } | quantised_linears(origin, plan.store.dense_schemes)
    return {
        name: PlannedLinear(scheme=matrix.scheme, nbytes=matrix.scheme.form.nbytes(*matrix.rows_and_columns))
        for name, matrix in matrices.items()
    }


def packed_linears(origin: Origin) -> dict[str, PlannedLinear]:
    """The weights outside experts that a quantised checkpoint has packed, and a store would keep in a scheme."""
    return {
        name: PlannedLinear(scheme=matrix.scheme, nbytes=origin.packed[name].nbytes)
        for name, matrix in origin.packed_dense.matrices.items()
    }


def planned_footprint(checkpoint: Checkpoint, plan: ExtractionPlan) -> Footprint:
    """What the model of the store that is planned would take in memory."""
    banks = {bank.key: BankRecords(layouts=Counter(one.layout for one in bank.experts)) for bank in plan.store.banks}
    # What is in a scheme stays in it; only the checkpoint's own quantisation is undone on loading.
    as_they_lie = checkpoint.tensors.keys() - checkpoint.packed.keys()
    plain = {one.name: checkpoint.tensors[one.name] for one in plan.dense if one.name in as_they_lie}
    dense = sum(one.nbytes for one in plan.dense if one.name not in plain)
    unread = unread_tensors(plain, checkpoint.quantisation, checkpoint.dtype)
    dense += sum(one.nbytes for one in unread.values())
    skeleton = checkpoint.skeleton
    shape = context_shape(skeleton.config, checkpoint.dtype, type(skeleton))
    # What changes on loading lies in memory otherwise than in the store, and stays there.
    as_stored = {
        one.name: one for one in plan.dense if one.name not in plain or TORCH_DTYPES[one.dtype] == checkpoint.dtype
    }
    leaves, table = leaving(as_stored, skeleton.config)
    return Footprint.of(banks, dense=dense, parts=leaves, table=table, shape=shape)
