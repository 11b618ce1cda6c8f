"""Memory of an open model: what the process's budget leaves for experts, and what they were given."""

from __future__ import annotations

from coterie.engine.promises import promised_nbytes
from coterie.engine.source import ModelSource
from coterie.errors import LoadError, MemoryBudgetError
from coterie.hf.context import context_shape
from coterie.integration import LogitsRoom
from coterie.plan.budget import MemoryPlan, plan_memory
from coterie.plan.compiled import compiled_kernels_nbytes, unbounded_note
from coterie.plan.machine import process_memory
from coterie.spec import format_bytes, share_nbytes


def plan_for(
    source: ModelSource, budget: int, context: int, minimum: int, *, read_threads: int, loaded: bool
) -> MemoryPlan:
    """Divides a budget for the whole process.

    Args:
        source: What is opened.
        budget: Bytes for the process.
        context: Tokens that the budget provides for.
        minimum: Bytes of the smallest arena that will do.
        read_threads: Threads that read experts.
        loaded: Whether the dense part is in memory already; if not, its size is counted.

    Raises:
        MemoryBudgetError: If not even the smallest arena fits.
    """
    measured = process_memory(exact=loaded)
    dense = 0 if loaded else source.dense_nbytes
    largest = max(source.record_nbytes.values(), default=0)
    return plan_memory(
        budget=budget,
        process=measured.anonymous
        + measured.file_mapped
        + measured.shared
        + measured.page_tables
        + dense
        + promised_nbytes(),
        shape=context_shape(source.config, source.dtype, source.model_class),
        max_context=context,
        io_buffers=_io_buffers(source, largest, read_threads),
        minimum=minimum,
        total=source.all_expert_nbytes,
        compiled_kernels=compiled_kernels_nbytes(budget),
        kernels_note=unbounded_note(budget),
    )


def logits_room(source: ModelSource, *, beside: int = 0) -> LogitsRoom:
    """What a budget for a model leaves for the logits of many positions.

    Args:
        source: What is opened.
        beside: Bytes that were kept free for logits outside the budget.
    """
    return LogitsRoom(shape=context_shape(source.config, source.dtype, source.model_class), beside=beside)


def _io_buffers(source: ModelSource, largest: int, read_threads: int) -> int:
    """What experts need beside their slots.

    Reading: a checkpoint's may be decoded, and growing a store is one more. Computing: quantised ones are dequantised
    one at a time, and the one before may not be gone yet.
    """
    dequantised = 2 * source.decoded_nbytes
    if source.kind == "store" and source.fetching is None:
        return dequantised
    return dequantised + 2 * (read_threads + (source.fetching is not None)) * largest


def arena_nbytes(source: ModelSource, plan: MemoryPlan | None, expert_memory: str | int | None, minimum: int) -> int:
    """Bytes of the experts' arena: what was asked for, or what the plan leaves.

    Args:
        source: What is opened.
        plan: The whole process's, if it has a budget.
        expert_memory: As :func:`coterie.load` takes it.
        minimum: Bytes of the smallest arena that will do.

    Raises:
        MemoryBudgetError: If the plan leaves less than was asked for, or that is too little.
    """
    if expert_memory is None:
        if plan is None:
            raise LoadError("Neither a budget nor expert memory is known.")
        return plan.arena
    wanted = expert_memory_nbytes(expert_memory, source.all_expert_nbytes)
    if plan is not None and wanted > plan.arena:
        raise MemoryBudgetError(
            f"expert_memory={expert_memory!r} is {format_bytes(wanted)}, the memory budget leaves "
            f"{format_bytes(plan.arena)} for experts.",
            advice="Leave expert_memory out to use what is left, or raise memory.",
            budget=plan.arena,
            minimum=wanted,
        )
    if wanted < minimum:
        raise MemoryBudgetError(
            f"expert_memory={expert_memory!r} is {wanted} bytes; at least {minimum} are needed.",
            advice="That is room for two experts: one to compute with, one to read.",
            budget=wanted,
            minimum=minimum,
        )
    return wanted


def expert_memory_nbytes(expert_memory: str | int, total: int) -> int:
    """Bytes, or a share of ``total`` of them, such as ``"25%"``.

    Raises:
        UsageError: If it is neither.
    """
    return share_nbytes(expert_memory, total, "expert_memory")
