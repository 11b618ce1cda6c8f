"""What a store or a checkpoint holds, on disk and in memory, without reading any expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coterie.checkpoint import Checkpoint, LazyTensor, model_dtype, unread_tensors
from coterie.errors import CoterieError
from coterie.hf.configs import load_config, load_quantisation, resolve_model
from coterie.hf.context import context_shape, default_context
from coterie.hf.parts import leaving
from coterie.inspection.dense_parts import DensePartFacts, dense_part_facts
from coterie.inspection.report import BankFacts, ComponentFacts, InspectReport, Model
from coterie.inspection.row_batching import RowsFacts, rows_facts, store_rows, unknown_rows
from coterie.inspection.what_fits import memory_fit, process_nbytes
from coterie.origins import StoreOrigin
from coterie.origins.store_or_checkpoint import store_path
from coterie.origins.stored_dense import dense_headers, stored_linears
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import Batching, RecordLayout, parse_bytes
from coterie.spec.encodings import NATIVE
from coterie.spec.footprint import READS_AT_ONCE, BankRecords, Footprint
from coterie.spec.parameters import checkpoint_encoding
from coterie.store import Store
from coterie.store.names import MANIFEST


def inspect(
    model: str | Path,
    *,
    memory: str | int | None = None,
    component: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> InspectReport:
    """Says what a store or a checkpoint holds. Reads manifests and headers, no expert.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        memory: A budget for the whole process, such as ``"8GiB"``: what would it hold?
        component: Of a checkpoint, only this part of the model.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.

    Raises:
        StoreError: If the store is unfinished or damaged.
        CheckpointError: If the checkpoint is not complete and consistent.
        UsageError: If the budget is not a size.
    """
    budget = None if memory is None else parse_bytes(memory, what="memory")
    path = store_path(model)
    if path is not None:
        return _inspect_store(Store.open(path), budget)
    return _inspect_checkpoint(Checkpoint.open(model, component=component, revision=revision, offline=offline), budget)


def _inspect_store(store: Store, budget: int | None) -> InspectReport:
    manifest = store.manifest
    # A manifest knows the records that are present; a bank without any is taken to be like its component's others.
    typical: dict[str, int] = {}
    for bank in manifest.banks:
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
            encodings=_encodings(manifest.layouts[record.layout] for record in bank.records.values()),
            present_nbytes=bank.nbytes,
            record_nbytes=max((r.nbytes for r in bank.records.values()), default=typical[bank.key.component]),
        )
        for bank in manifest.banks
    )
    files = sum(manifest.file_sizes.values())
    footprint = store_footprint(store)
    dense_parts: tuple[DensePartFacts, ...] = ()
    try:
        origin = StoreOrigin.open(store.path)
    except CoterieError as error:
        batching = unknown_rows(error.message)
    else:
        batching = store_rows(origin)
        dense_parts = dense_part_facts(origin.model.skeleton, origin.model.keymap, origin.tensors, origin.linears)
    return _report(
        Model(
            kind="store",
            model=str(store.path),
            source=manifest.source.name,
            revision=manifest.source.revision,
            model_class=manifest.model.class_name,
            model_type=manifest.model.model_type,
            component=manifest.model.component,
            identity=manifest.model.identity,
            integrity=manifest.source.integrity,
        ),
        banks,
        dense_nbytes=sum(facts.nbytes for facts in manifest.dense),
        dense_scheme=str(manifest.dense_schemes),
        footprint=footprint,
        disk_nbytes=files + (store.path / MANIFEST).stat().st_size,
        ignored=manifest.ignored,
        records=[record.nbytes for bank in manifest.banks for record in bank.records.values()],
        budget=budget,
        dense_parts=dense_parts,
        batching=batching,
        context=default_context(_store_model(store)[1]),
    )


def _store_model(store: Store) -> tuple[type[Any], Any]:
    """Class and configuration of the model that a store holds."""
    return resolve_model(load_config(store.path), store.manifest.model.component)


def store_footprint(store: Store) -> Footprint:
    """What the model of a store takes in memory."""
    manifest = store.manifest
    model_class, config = _store_model(store)
    tensors = dense_headers(store)
    dtype = model_dtype(config, tensors)
    linears = stored_linears(tensors, manifest.dense_schemes)
    encoded = {info.name for linear in linears.values() for info in linear.tensors}
    as_stored = {name: info for name, info in tensors.items() if TORCH_DTYPES[info.dtype] == dtype or name in encoded}
    leaves, table = leaving(as_stored, config)
    # What is in a scheme stays in it; only the checkpoint's own quantisation is undone on loading.
    parts = [tensors.pop(info.name) for linear in linears.values() for info in linear.tensors]
    dense = sum(part.nbytes for part in parts)
    dense += sum(tensor.nbytes for tensor in unread_tensors(tensors, load_quantisation(store.path), dtype).values())
    banks = {
        bank.key: BankRecords(
            layouts=Counter(manifest.layouts[record.layout] for record in bank.records.values()),
            absent=bank.num_experts - len(bank.records),
        )
        for bank in manifest.banks
    }
    return Footprint.of(banks, dense=dense, parts=leaves, table=table, shape=context_shape(config, dtype, model_class))


def _encodings(layouts: Iterable[RecordLayout]) -> tuple[str, ...]:
    return tuple(sorted({found for layout in layouts if (found := checkpoint_encoding(layout))}))


def checkpoint_footprint(checkpoint: Checkpoint) -> Footprint:
    """What the model of a checkpoint takes in memory."""
    banks = {key: BankRecords(layouts={bank.layout: bank.bank.num_experts}) for key, bank in checkpoint.banks.items()}
    skeleton = checkpoint.skeleton
    shape = context_shape(skeleton.config, checkpoint.dtype, type(skeleton))
    as_stored = {
        name: tensor
        for name, tensor in checkpoint.dense_state_dict().items()
        if isinstance(tensor, LazyTensor) and tensor.dtype == checkpoint.dtype
    }
    leaves, table = leaving(as_stored, skeleton.config)
    return Footprint.of(
        banks,
        dense=checkpoint.dense_memory_nbytes,
        parts=leaves,
        table=table,
        shape=shape,
        buffered_reads=READS_AT_ONCE,
    )


def _inspect_checkpoint(checkpoint: Checkpoint, budget: int | None) -> InspectReport:
    names = [name for found in checkpoint.router_names().values() for name in found]
    here = not checkpoint.location.missing_shards(checkpoint.tensors[name].path for name in names)
    banks = tuple(
        BankFacts(
            component=key.component,
            layer=key.layer,
            bank=key.bank,
            experts=bank.bank.num_experts,
            present=bank.bank.num_experts,
            top_k=bank.bank.top_k,
            schemes={NATIVE: bank.bank.num_experts},
            encodings=_encodings([bank.layout]),
            present_nbytes=bank.bank.num_experts * bank.layout.nbytes,
            record_nbytes=bank.layout.nbytes,
        )
        for key, bank in sorted(checkpoint.banks.items())
    )
    ignored = tuple(sorted(checkpoint.keymap.ignored))
    left_out = {*ignored, *checkpoint.keymap.outside}
    return _report(
        Model(
            kind="checkpoint",
            model=checkpoint.location.repo_id or str(checkpoint.location.directory),
            source=checkpoint.location.name,
            revision=checkpoint.location.revision,
            model_class=type(checkpoint.skeleton).__name__,
            model_type=checkpoint.model_type,
            component=checkpoint.component,
            # Both read the routers: asking what a repository holds must not download it.
            identity=checkpoint.identity if here else None,
            integrity=checkpoint.integrity if here else None,
        ),
        banks,
        dense_nbytes=checkpoint.dense_nbytes,
        dense_scheme=NATIVE,
        footprint=checkpoint_footprint(checkpoint),
        disk_nbytes=sum(info.nbytes for name, info in checkpoint.tensors.items() if name not in left_out),
        ignored=ignored,
        records=[bank.layout.nbytes for bank in checkpoint.banks.values() for _ in range(bank.bank.num_experts)],
        budget=budget,
        dense_parts=dense_part_facts(checkpoint.skeleton, checkpoint.keymap, checkpoint.tensors, {}),
        batching=rows_facts(checkpoint.skeleton, checkpoint.keymap, {}, {NATIVE}),
        context=default_context(checkpoint.skeleton.config),
    )


def _report(
    model: Model,
    banks: tuple[BankFacts, ...],
    *,
    dense_nbytes: int,
    dense_scheme: str,
    dense_parts: tuple[DensePartFacts, ...],
    footprint: Footprint,
    disk_nbytes: int,
    ignored: tuple[str, ...],
    records: list[int],
    budget: int | None,
    batching: dict[Batching, RowsFacts],
    context: int,
) -> InspectReport:
    working_set = sum(bank.working_set_nbytes for bank in banks)
    known = all(bank.record_nbytes for bank in banks if bank.experts)
    full = dense_nbytes + sum(bank.full_nbytes for bank in banks)
    experts, present = sum(bank.experts for bank in banks), sum(bank.present for bank in banks)
    fit = None
    if budget is not None:
        fit = memory_fit(budget, footprint, context=context, record_sizes=records, working_set_nbytes=working_set)
    return InspectReport(
        model=model,
        complete=present == experts,
        experts=experts,
        present=present,
        banks=banks,
        components=tuple(_component(name, banks) for name in sorted({bank.component for bank in banks})),
        dense_nbytes=dense_nbytes,
        dense_memory_nbytes=footprint.dense,
        dense_scheme=dense_scheme,
        dense_parts=dense_parts,
        expert_nbytes=footprint.experts,
        full_nbytes=full if known else None,
        disk_nbytes=disk_nbytes,
        minimum_nbytes=process_nbytes() + footprint.dense + footprint.buffers + footprint.least_experts,
        working_set_nbytes=working_set,
        ignored=ignored,
        batching=batching,
        memory=fit,
    )


def _component(name: str, banks: tuple[BankFacts, ...]) -> ComponentFacts:
    own = [bank for bank in banks if bank.component == name]
    return ComponentFacts(
        component=name,
        banks=len(own),
        experts=sum(bank.experts for bank in own),
        present=sum(bank.present for bank in own),
        present_nbytes=sum(bank.present_nbytes for bank in own),
        full_nbytes=sum(bank.full_nbytes for bank in own) if all(bank.record_nbytes for bank in own) else None,
        working_set_nbytes=sum(bank.working_set_nbytes for bank in own),
    )
