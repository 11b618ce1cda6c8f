"""What a store or a checkpoint holds, added up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coterie.inspection.dense_parts import DensePartFacts
from coterie.inspection.report import BankFacts, ComponentFacts, InspectReport, Model
from coterie.inspection.row_batching import RowsFacts
from coterie.inspection.what_fits import memory_fit, process_nbytes
from coterie.spec import Batching, RecordLayout
from coterie.spec.footprint import Footprint
from coterie.spec.parameters import checkpoint_encoding


def encodings(layouts: Iterable[RecordLayout]) -> tuple[str, ...]:
    """The encodings of a quantised checkpoint that these records have."""
    return tuple(sorted({found for layout in layouts if (found := checkpoint_encoding(layout))}))


def report(
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
    budgets: Sequence[int],
    batching: dict[Batching, RowsFacts],
    context: int,
    planned: bool = False,
) -> InspectReport:
    """The report on a model.

    Args:
        model: What it is.
        banks: Its banks.
        dense_nbytes: Bytes on disk of what is no expert.
        dense_scheme: Its schemes.
        dense_parts: What it consists of.
        footprint: What the model takes in memory.
        disk_nbytes: Bytes on disk of all of it.
        ignored: Tensors of the checkpoint that the model has no place for.
        records: Bytes of the record of each expert.
        budgets: Of each of these: what would it hold?
        batching: How many requests share a forward pass.
        context: Tokens of context that memory is planned for.
        planned: Whether it is a store that could be made.
    """
    components = tuple(_component(name, banks) for name in sorted({bank.component for bank in banks}))
    working_set = max((one.working_set_nbytes for one in components), default=0)
    known = all(bank.record_nbytes for bank in banks if bank.experts)
    full = dense_nbytes + sum(bank.full_nbytes for bank in banks)
    experts, present = sum(bank.experts for bank in banks), sum(bank.present for bank in banks)
    fits = tuple(
        memory_fit(budget, footprint, context=context, record_sizes=records, working_set_nbytes=working_set)
        for budget in budgets
    )
    return InspectReport(
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
        batching=batching,
        memory=fits[0] if fits else None,
        budgets=fits,
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
