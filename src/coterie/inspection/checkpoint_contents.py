"""What a checkpoint holds, on disk and in memory, and what a store of it would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from coterie.checkpoint import Checkpoint, LazyTensor
from coterie.extraction.planning import ExtractionPlan
from coterie.hf.context import context_shape, default_context
from coterie.hf.parts import leaving
from coterie.inspection.dense_parts import dense_part_facts
from coterie.inspection.planned import planned_footprint, planned_linears
from coterie.inspection.report import BankFacts, InspectReport, Model
from coterie.inspection.row_batching import rows_facts
from coterie.inspection.totals import encodings, report
from coterie.spec.encodings import NATIVE
from coterie.spec.footprint import READS_AT_ONCE, BankRecords, Footprint


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


def inspect_checkpoint(checkpoint: Checkpoint, budgets: Sequence[int], plan: ExtractionPlan | None) -> InspectReport:
    """What a checkpoint holds, or what a store of it would; see :func:`~coterie.inspection.inspect`.

    Args:
        checkpoint: The checkpoint.
        budgets: Of each of these bytes: what would it hold?
        plan: By which a store would be made of it; None to look at the checkpoint itself.
    """
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
            encodings=encodings(layout for _, layout in experts[key]),
            present_nbytes=sum(layout.nbytes for _, layout in experts[key]),
            record_nbytes=max(layout.nbytes for _, layout in experts[key]),
        )
        for key, bank in sorted(checkpoint.banks.items())
    )
    ignored = tuple(sorted(checkpoint.keymap.ignored))
    left_out = {*ignored, *checkpoint.keymap.outside}
    linears = {} if plan is None else planned_linears(checkpoint, plan)
    dense_nbytes = checkpoint.dense_nbytes if plan is None else sum(tensor.nbytes for tensor in plan.dense)
    on_disk = sum(info.nbytes for name, info in checkpoint.tensors.items() if name not in left_out)
    return report(
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
        records=[layout.nbytes for found in experts.values() for _, layout in found],
        budgets=budgets,
        dense_parts=dense_part_facts(checkpoint.skeleton, checkpoint.keymap, checkpoint.tensors, linears),
        batching=rows_facts(
            checkpoint.skeleton,
            checkpoint.keymap,
            linears,
            {scheme for found in experts.values() for scheme, _ in found},
        ),
        context=default_context(checkpoint.skeleton.config),
        planned=plan is not None,
    )
