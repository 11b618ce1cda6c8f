"""What a memory budget would hold of a model."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.cache.arena import KERNEL_TAKES_PAGES_BACK
from coterie.plan.budget import divide, fits_whole, least_budget
from coterie.plan.machine import process_memory
from coterie.spec.footprint import Footprint, Part, PartUse

PROCESS_NBYTES = 410 * 2**20
"""What interpreter and libraries take before any weight is loaded, at the least that is counted with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """What a memory budget for the process would hold.

    Attributes:
        memory: The budget in bytes.
        process_nbytes: Taken by interpreter and libraries.
        dense_nbytes: Taken by everything that is not an expert; with ``by_phase``, by what is always in memory.
        context: Tokens that the rest is for.
        kv_nbytes: Set aside for them: keys and values.
        activation_nbytes: Activations of a prompt of so many tokens.
        buffer_nbytes: Buffers for reading and dequantising experts.
        library_nbytes: What libraries take once they compute, compiled kernels included.
        margin_nbytes: Left free.
        expert_nbytes: Left for experts; with ``by_phase``, while text is read and written.
        held_nbytes: What the process comes to hold at the most, however long it runs: all of the above but the margin,
            of experts no more than there are.
        by_phase: Whether parts that only some requests need are in memory only then.
        parts: Those parts.
        lent: What a part is for → bytes that experts lend while that goes on; empty unless ``by_phase``.
        experts: Experts that fit there, of those present.
        share: Of the bytes of all experts present, from 0 to 1.
        enough: Whether the model can run at all.
        minimum: About the least budget with which it can.
        comfortable: Whether at least twice the working set is left, below which hits may be few.
    """

    memory: int
    process_nbytes: int
    dense_nbytes: int
    context: int
    kv_nbytes: int
    activation_nbytes: int
    buffer_nbytes: int
    library_nbytes: int
    margin_nbytes: int
    expert_nbytes: int
    held_nbytes: int
    by_phase: bool
    parts: tuple[Part, ...]
    lent: dict[PartUse, int]
    experts: int
    share: float
    enough: bool
    minimum: int
    comfortable: bool

    @property
    def context_nbytes(self) -> int:
        """All that is set aside for computing: the context's keys, values and activations, buffers, libraries."""
        return self.kv_nbytes + self.activation_nbytes + self.buffer_nbytes + self.library_nbytes


def memory_fit(
    memory: int,
    footprint: Footprint,
    *,
    context: int,
    record_sizes: list[int],
    working_set_nbytes: int,
    process: int | None = None,
) -> MemoryFit:
    """What a budget would hold, divided as loading divides it.

    Args:
        memory: Budget for the process in bytes.
        footprint: What the model takes.
        context: Tokens to provide for.
        record_sizes: Bytes of the record of every expert present.
        working_set_nbytes: Bytes of one token's experts in all layers.
        process: What the process takes without weights; default: as it is now, see :func:`process_nbytes`.
    """
    empty = process_nbytes() if process is None else process
    whole = empty + footprint.dense
    by_phase = KERNEL_TAKES_PAGES_BACK and not fits_whole(memory, footprint, context, process=whole)
    dense = footprint.lasting if by_phase else footprint.dense
    process = empty + dense
    plan = divide(memory, footprint, context, process=process, by_phase=by_phase)
    minimum = least_budget(footprint, context, process=process, by_phase=by_phase)
    left = max(0, plan.arena)
    experts = used = 0
    for nbytes in sorted(record_sizes):
        if used + nbytes > left:
            break
        used += nbytes
        experts += 1
    total = sum(record_sizes)
    return MemoryFit(
        memory=memory,
        process_nbytes=empty,
        dense_nbytes=dense,
        context=context,
        kv_nbytes=plan.kv_cache,
        activation_nbytes=plan.activations,
        buffer_nbytes=plan.io_buffers,
        library_nbytes=plan.libraries,
        margin_nbytes=plan.margin,
        expert_nbytes=left,
        held_nbytes=plan.rest + min(left, total + plan.most_lent),
        by_phase=by_phase,
        parts=footprint.parts if by_phase else (),
        lent=dict(plan.lent),
        experts=experts,
        share=used / total if total else 1.0,
        enough=memory >= minimum,
        minimum=minimum,
        comfortable=left >= min(total, 2 * working_set_nbytes),
    )


def process_nbytes() -> int:
    """What the process takes without weights: as much as now, and what it comes to when a model is opened."""
    return max(PROCESS_NBYTES, process_memory().total)
