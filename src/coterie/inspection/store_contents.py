"""What a store holds, on disk and in memory: its manifest and the headers of its dense files say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from coterie.checkpoint import TensorInfo, model_dtype, unread_tensors
from coterie.errors import CoterieError
from coterie.hf.configs import load_quantisation
from coterie.hf.context import context_shape, default_context
from coterie.hf.parts import leaving
from coterie.inspection.dense_parts import DensePartFacts, dense_part_facts
from coterie.inspection.report import BankFacts, InspectReport, Model
from coterie.inspection.row_batching import store_rows, unknown_rows
from coterie.inspection.totals import encodings, report
from coterie.origins import StoreOrigin
from coterie.origins.store_component import StoreComponent, store_component
from coterie.origins.stored_dense import dense_headers, stored_linears
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec.footprint import BankRecords, Footprint
from coterie.store import Store
from coterie.store.names import MANIFEST


def inspect_store(store: Store, component: str | None, budgets: Sequence[int]) -> InspectReport:
    """What a store, or a component of it, holds; see :func:`~coterie.inspection.inspect`.

    Args:
        store: The store.
        component: Only this component of it.
        budgets: Of each of these bytes: what would it hold?
    """
    manifest = store.manifest
    part = store_component(store, component)
    held = [bank for bank in manifest.banks if bank.key in part.banks]
    # A manifest knows the records that are present; a bank without any is taken to be like its component's others.
    typical: dict[str, int] = {}
    for bank in held:
        sizes = (record.nbytes for record in bank.records.values())
        typical[bank.key.component] = max(typical.get(bank.key.component, 0), *sizes, 0)
    banks = tuple(
        BankFacts(
            component=bank.key.component,
            layer=bank.key.layer,
            bank=bank.key.bank,
            experts=bank.num_experts - len(bank.weightless),
            present=len(bank.records),
            top_k=bank.top_k,
            schemes=dict(sorted(Counter(record.scheme for record in bank.records.values()).items())),
            encodings=encodings(manifest.layouts[record.layout] for record in bank.records.values()),
            present_nbytes=bank.nbytes,
            record_nbytes=max((r.nbytes for r in bank.records.values()), default=typical[bank.key.component]),
        )
        for bank in held
    )
    headers = dense_headers(store)
    tensors = _dense_of(headers, part)
    dense_nbytes = sum(tensor.nbytes for tensor in tensors.values())
    disk_nbytes = sum(manifest.file_sizes.values()) + (store.path / MANIFEST).stat().st_size
    dense_parts: tuple[DensePartFacts, ...] = ()
    try:
        origin = StoreOrigin.of(store, headers)
    except CoterieError as error:
        batching = unknown_rows(error.message)
    else:
        batching = store_rows(origin, component if part.prefix else None)
        dense_parts = dense_part_facts(
            origin.model.skeleton, origin.model.keymap, origin.tensors, origin.linears, prefix=part.prefix
        )
    return report(
        Model(
            kind="store",
            model=str(store.path),
            source=manifest.source.name,
            revision=manifest.source.revision,
            model_class=part.model_class.__name__,
            model_type=manifest.model.model_type,
            component=part.name,
            identity=manifest.model.identity,
            integrity=manifest.source.integrity,
        ),
        banks,
        dense_nbytes=dense_nbytes,
        dense_scheme=str(manifest.dense_schemes),
        footprint=_footprint(store, part, tensors),
        disk_nbytes=disk_nbytes if not part.prefix else dense_nbytes + sum(bank.nbytes for bank in held),
        ignored=manifest.ignored,
        records=[record.nbytes for bank in held for record in bank.records.values()],
        budgets=budgets,
        dense_parts=dense_parts,
        batching=batching,
        context=default_context(part.config),
    )


def _dense_of(headers: Mapping[str, TensorInfo], part: StoreComponent) -> dict[str, TensorInfo]:
    """What is no expert of a component, by name."""
    return {name: info for name, info in headers.items() if name.startswith(part.prefix)}


def store_footprint(store: Store, component: str | None = None) -> Footprint:
    """What the model of a store, or a component of it, takes in memory."""
    part = store_component(store, component)
    return _footprint(store, part, _dense_of(dense_headers(store), part))


def _footprint(store: Store, part: StoreComponent, dense: Mapping[str, TensorInfo]) -> Footprint:
    manifest, tensors = store.manifest, dict(dense)
    dtype = model_dtype(part.config, tensors)
    linears = stored_linears(tensors, manifest.dense_schemes)
    parts_of_linears = {info.name for linear in linears.values() for info in linear.tensors}
    as_stored = {
        name: info for name, info in tensors.items() if TORCH_DTYPES[info.dtype] == dtype or name in parts_of_linears
    }
    leaves, table = leaving(as_stored, part.config)
    # What is in a scheme stays in it; only the checkpoint's own quantisation is undone on loading.
    stored = [tensors.pop(info.name) for linear in linears.values() for info in linear.tensors]
    nbytes = sum(tensor.nbytes for tensor in stored)
    nbytes += sum(tensor.nbytes for tensor in unread_tensors(tensors, load_quantisation(store.path), dtype).values())
    banks = {
        bank.key: BankRecords(
            layouts=Counter(manifest.layouts[record.layout] for record in bank.records.values()),
            absent=bank.num_experts - len(bank.records),
        )
        for bank in manifest.banks
        if bank.key in part.banks
    }
    shape = context_shape(part.config, dtype, part.model_class)
    return Footprint.of(banks, dense=nbytes, parts=leaves, table=table, shape=shape)
