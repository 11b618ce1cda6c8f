"""Memory of an open model: what the process's budget leaves for experts, and what they were given."""

from __future__ import annotations

from coterie.cache import EarlyMemory
from coterie.cache.arena import KERNEL_TAKES_PAGES_BACK
from coterie.engine.promises import promised_nbytes
from coterie.engine.source import ModelSource
from coterie.errors import LoadError, MemoryBudgetError
from coterie.passes import LogitsRoom
from coterie.plan.budget import MemoryPlan, fits_whole, plan_memory
from coterie.plan.machine import process_memory
from coterie.spec import format_bytes, share_nbytes
from coterie.spec.footprint import Footprint

EARLY_NBYTES = 256 * 2**20
"""Bytes of the smallest arena whose memory is found while a model is loaded."""


def goes_by_phase(source: ModelSource, budget: int, context: int, expert_memory: str | int | None) -> bool:
    """Whether parts that only some requests need should be in memory only then.

    That is so where experts would otherwise have less memory than they could use, and the kernel takes memory back.

    Args:
        source: What is opened; its dense part is not in memory yet.
        budget: Bytes for the process.
        context: Tokens that the budget provides for.
        expert_memory: As :func:`coterie.load` takes it.
    """
    footprint = source.footprint
    if not KERNEL_TAKES_PAGES_BACK:
        return False
    wanted = None
    if expert_memory is not None:
        wanted = share_nbytes(expert_memory, footprint.all_experts, "expert_memory")
    process = process_memory().total + footprint.dense + promised_nbytes()
    return not fits_whole(budget, footprint, context, process=process, experts=wanted)


def plan_for(
    source: ModelSource, budget: int, context: int, *, loaded: bool, by_phase: bool = False, found: int = 0
) -> MemoryPlan:
    """Divides a budget for the whole process.

    Args:
        source: What is opened.
        budget: Bytes for the process.
        context: Tokens that the budget provides for.
        loaded: Whether what is always there of the dense part is in memory already; if not, its size is counted.
        by_phase: Whether parts that only some requests need are in memory only then.
        found: Bytes of what the process holds that are for experts.

    Raises:
        MemoryBudgetError: If not even the smallest arena fits.
    """
    footprint = source.footprint
    dense = footprint.lasting if by_phase else footprint.dense
    held = process_memory(exact=loaded).total - found + (0 if loaded else dense)
    return plan_memory(budget, footprint, context, process=held + promised_nbytes(), by_phase=by_phase)


def logits_room(source: ModelSource, *, beside: int = 0) -> LogitsRoom:
    """What a budget for a model leaves for the logits of many positions.

    Args:
        source: What is opened.
        beside: Bytes that were kept free for logits outside the budget.
    """
    return LogitsRoom(shape=source.footprint.shape, beside=beside)


def early_memory(footprint: Footprint, plan: MemoryPlan | None, expert_memory: str | int | None) -> EarlyMemory | None:
    """Begins to find the memory of the arena while the model is loaded; None where it is left to the reads.

    That is so where the arena is small, or all experts fit: then it depends on what is asked of a model how many are
    ever read.

    Args:
        footprint: What the model takes.
        plan: The whole process's, made before the model is loaded, if it has a budget.
        expert_memory: As for :func:`arena_nbytes`.

    Raises:
        MemoryBudgetError: As there.
    """
    nbytes = arena_nbytes(footprint, plan, expert_memory)
    return EarlyMemory.of(nbytes) if EARLY_NBYTES <= nbytes < footprint.all_experts else None


def arena_nbytes(footprint: Footprint, plan: MemoryPlan | None, expert_memory: str | int | None) -> int:
    """Bytes of the experts' arena: what was asked for, or what the plan leaves.

    Args:
        footprint: What the model takes.
        plan: The whole process's, if it has a budget.
        expert_memory: As :func:`coterie.load` takes it.

    Raises:
        MemoryBudgetError: If the plan leaves less than was asked for, or that is too little.
    """
    if expert_memory is None:
        if plan is None:
            raise LoadError("Neither a budget nor expert memory is known.")
        return plan.arena
    wanted = share_nbytes(expert_memory, footprint.all_experts, "expert_memory")
    if plan is not None and wanted > plan.arena:
        raise MemoryBudgetError(
            f"expert_memory={expert_memory!r} is {format_bytes(wanted)}, the memory budget leaves "
            f"{format_bytes(plan.arena)} for experts.",
            advice="Leave expert_memory out to use what is left, or raise memory.",
            budget=plan.arena,
            minimum=wanted,
        )
    minimum = footprint.least_experts
    if wanted < minimum:
        raise MemoryBudgetError(
            f"expert_memory={expert_memory!r} is {wanted} bytes; at least {minimum} are needed.",
            advice="That is room for two experts: one to compute with, one to read.",
            budget=wanted,
            minimum=minimum,
        )
    return wanted
