"""What a store or a checkpoint holds, on disk and in memory, without reading any expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint import Checkpoint, LazyTensor, TensorInfo, model_dtype, unread_tensors
from coterie.errors import CoterieError, UsageError
from coterie.extraction.planning import ExtractionPlan
from coterie.extraction.whole import plan_whole
from coterie.hf.configs import load_quantisation
from coterie.hf.context import context_shape, default_context, model_context
from coterie.hf.parts import leaving
from coterie.inspection.dense_parts import DensePartFacts, dense_part_facts
from coterie.inspection.planned import planned_footprint, planned_linears
from coterie.inspection.report import BankFacts, ComponentFacts, InspectReport, Model
from coterie.inspection.row_batching import RowsFacts, deciding_schemes, rows_facts, store_rows, unknown_rows
from coterie.inspection.what_fits import process_nbytes
from coterie.origins import CheckpointOrigin, StoreOrigin
from coterie.origins.store_component import StoreComponent, store_component
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import dense_headers, stored_linears
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import Batching, RecordLayout
from coterie.spec.encodings import NATIVE
from coterie.spec.footprint import READS_AT_ONCE, BankRecords, Footprint
from coterie.spec.parameters import checkpoint_encoding
from coterie.store import AllocationFacts, CalibrationFacts, Store
from coterie.store.names import MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a model holds, and what has to be known to say what a budget would hold of it.

    Attributes:
        report: What is shown.
        footprint: What the model takes in memory.
        records: Expert by expert, bytes of the records of those present.
        layouts: Layout → how many of the experts present have it.
        context: Tokens that a budget provides for where none are asked for.
        longest_context: Tokens that the model was made for; None if its configuration does not say.
    """

    report: InspectReport
    footprint: Footprint
    records: list[int]
    layouts: Mapping[RecordLayout, int]
    context: int
    longest_context: int | None


def inspect(
    model: str | Path,
    *,
    component: str | None = None,
    scheme: str | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> InspectReport:
    """Says what a store or a checkpoint holds. Reads manifests and headers, no expert.

    What a memory budget would hold of it, and how fast it would run, says :func:`coterie.planner.plan`.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        component: Only this part of a whole model, such as ``thinker``.
        scheme: Of a checkpoint: what would a store hold whose experts are stored so? One for all of them.
        dense_scheme: Likewise, of linear layers outside experts.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.

    Raises:
        StoreError: If the store is unfinished or damaged.
        CheckpointError: If the checkpoint is not complete and consistent.
        UsageError: If the model has no such component, there is no such scheme, or a store is to be looked at as if it
            had another one.
    """
    found = find_model(model, revision=revision, offline=offline)
    wanted = scheme is not None or dense_scheme is not None
    if isinstance(found, StorePlace):
        if wanted:
            raise has_its_schemes(found)
        return store_contents(found, component).report
    checkpoint = Checkpoint.open(found, component=component)
    plan = plan_whole(CheckpointOrigin(checkpoint), scheme, dense_scheme) if wanted else None
    return checkpoint_contents(checkpoint, plan).report


def has_its_schemes(place: StorePlace) -> UsageError:
    """The refusal to look at a store as if it had other schemes."""
    return UsageError(
        f"{place} is a store, and has its schemes.",
        advice="Leave the schemes out, or name the checkpoint to see what another store of it would hold.",
        path=place.directory,
    )


def store_contents(place: StorePlace, component: str | None = None) -> Contents:
    """What a store holds, or a component of it."""
    store = place.look()
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
            encodings=_encodings(manifest.layouts[record.layout] for record in bank.records.values()),
            present_nbytes=bank.nbytes,
            record_nbytes=max((r.nbytes for r in bank.records.values()), default=typical[bank.key.component]),
        )
        for bank in held
    )
    headers = place.headers(store)
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
    return _report(
        Model(
            kind="store",
            model=str(place),
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
        footprint=_store_footprint(store, part, tensors),
        disk_nbytes=disk_nbytes if not part.prefix else dense_nbytes + sum(bank.nbytes for bank in held),
        ignored=manifest.ignored,
        calibration=manifest.calibration,
        allocation=manifest.allocation,
        layouts=Counter(manifest.layouts[record.layout] for bank in held for record in bank.records.values()),
        dense_parts=dense_parts,
        batching=batching,
        config=part.config,
    )


def _dense_of(headers: Mapping[str, TensorInfo], part: StoreComponent) -> dict[str, TensorInfo]:
    """What is no expert of a component, by name."""
    return {name: info for name, info in headers.items() if name.startswith(part.prefix)}


def store_footprint(store: Store, component: str | None = None) -> Footprint:
    """What the model of a store, or a component of it, takes in memory."""
    part = store_component(store, component)
    return _store_footprint(store, part, _dense_of(dense_headers(store), part))


def _store_footprint(store: Store, part: StoreComponent, headers: Mapping[str, TensorInfo]) -> Footprint:
    manifest, tensors = store.manifest, dict(headers)
    dtype = model_dtype(part.config, tensors)
    linears = stored_linears(tensors, manifest.dense_schemes)
    parts_of_linears = {info.name for linear in linears.values() for info in linear.tensors}
    as_stored = {
        name: info for name, info in tensors.items() if TORCH_DTYPES[info.dtype] == dtype or name in parts_of_linears
    }
    leaves, table = leaving(as_stored, part.config)
    # What is in a scheme stays in it; only the checkpoint's own quantisation is undone on loading.
    stored = [tensors.pop(info.name) for linear in linears.values() for info in linear.tensors]
    dense = sum(tensor.nbytes for tensor in stored)
    dense += sum(tensor.nbytes for tensor in unread_tensors(tensors, load_quantisation(store.path), dtype).values())
    banks = {
        bank.key: BankRecords(
            layouts=Counter(manifest.layouts[record.layout] for record in bank.records.values()),
            absent=bank.num_experts - len(bank.records),
        )
        for bank in manifest.banks
        if bank.key in part.banks
    }
    shape = context_shape(part.config, dtype, part.model_class)
    return Footprint.of(banks, dense=dense, parts=leaves, table=table, shape=shape)


def _encodings(layouts: Iterable[RecordLayout]) -> tuple[str, ...]:
    return tuple(sorted({found for layout in layouts if (found := checkpoint_encoding(layout))}))


def checkpoint_footprint(checkpoint: Checkpoint) -> Footprint:
    """What the model of a checkpoint takes in memory."""
    banks = {key: BankRecords(layouts={bank.layout: bank.bank.num_experts}) for key, bank in checkpoint.banks.items()}
    skeleton = checkpoint.skeleton
    shape = context_shape(skeleton.config, checkpoint.dtype, type(skeleton))
    as_stored = {
        name: tensor
        for name, tensor in checkpoint.unread_dense().items()
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


def checkpoint_contents(checkpoint: Checkpoint, plan: ExtractionPlan | None = None) -> Contents:
    """What a checkpoint holds, or what the store of it would that is planned."""
    names = [name for found in checkpoint.router_names().values() for name in found]
    here = not checkpoint.location.missing_shards(checkpoint.tensors[name].path for name in names)
    experts = {key: [(NATIVE, bank.layout)] * bank.bank.num_experts for key, bank in checkpoint.banks.items()}
    if plan is not None:
        experts = {bank.key: [(one.scheme, one.layout) for one in bank.experts] for bank in plan.store.banks}
    banks = tuple(
        BankFacts(
            component=key.component,
            layer=key.layer,
            bank=key.bank,
            experts=bank.bank.num_experts,
            present=len(experts[key]),
            top_k=bank.bank.top_k,
            schemes=dict(Counter(scheme for scheme, _ in experts[key])),
            encodings=_encodings(layout for _, layout in experts[key]),
            present_nbytes=sum(layout.nbytes for _, layout in experts[key]),
            record_nbytes=max(layout.nbytes for _, layout in experts[key]),
        )
        for key, bank in sorted(checkpoint.banks.items())
    )
    ignored = tuple(sorted(checkpoint.keymap.ignored))
    linears = {} if plan is None else planned_linears(checkpoint, plan)
    dense_nbytes = checkpoint.dense_nbytes if plan is None else sum(tensor.nbytes for tensor in plan.dense)
    on_disk = sum(info.nbytes for info in checkpoint.tensors_in_use)
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
        dense_nbytes=dense_nbytes,
        dense_scheme=NATIVE if plan is None else str(plan.store.dense_schemes),
        footprint=checkpoint_footprint(checkpoint) if plan is None else planned_footprint(checkpoint, plan),
        disk_nbytes=on_disk if plan is None else dense_nbytes + plan.store.expert_nbytes,
        ignored=ignored,
        layouts=Counter(layout for found in experts.values() for _, layout in found),
        dense_parts=dense_part_facts(checkpoint.skeleton, checkpoint.keymap, checkpoint.tensors, linears),
        batching=rows_facts(
            checkpoint.skeleton,
            checkpoint.keymap,
            linears,
            deciding_schemes({scheme for scheme, _ in found} for found in experts.values()),
        ),
        config=checkpoint.skeleton.config,
        planned=plan is not None,
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
    layouts: Mapping[RecordLayout, int],
    batching: dict[Batching, RowsFacts],
    config: Any,
    planned: bool = False,
    calibration: CalibrationFacts | None = None,
    allocation: AllocationFacts | None = None,
) -> Contents:
    components = tuple(_component(name, banks) for name in sorted({bank.component for bank in banks}))
    working_set = max((one.working_set_nbytes for one in components), default=0)
    known = all(bank.record_nbytes for bank in banks if bank.experts)
    full = dense_nbytes + sum(bank.full_nbytes for bank in banks)
    experts, present = sum(bank.experts for bank in banks), sum(bank.present for bank in banks)
    report = InspectReport(
        model=model,
        planned=planned,
        complete=present == experts,
        experts=experts,
        present=present,
        banks=banks,
        components=components,
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
        calibration=calibration,
        allocation=allocation,
        batching=batching,
    )
    return Contents(
        report=report,
        footprint=footprint,
        records=[layout.nbytes for layout, count in layouts.items() for _ in range(count)],
        layouts=layouts,
        context=default_context(config),
        longest_context=model_context(config),
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
