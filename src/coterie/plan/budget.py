"""How a byte budget for the whole process is divided, and what is left for experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from coterie.errors import MemoryBudgetError
from coterie.plan.compiled import compiled_kernels_nbytes, unbounded_note
from coterie.spec import format_bytes
from coterie.spec.footprint import PART_USES, Footprint, PartUse

_LEAST_MARGIN = 64 << 20
_MARGIN_SHARE = 50
LOADING_NBYTES = 16 << 20
"""What loading may leave behind beyond the dense weights; added to the budget that a refusal names."""
_FIRST_USE = 32 << 20
"""Pages of libraries, thread pools and heap that are touched only by the first forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the bytes of a budget go.

    Attributes:
        budget: The ceiling for the process.
        process: Measured once dense weights are loaded: interpreter, libraries and dense weights.
        kv_cache: For ``max_context`` tokens.
        activations: Of a prefill of ``max_context`` tokens.
        io_buffers: For reads in flight.
        libraries: What libraries take once they compute: their code, and the kernels that they compile and keep.
        margin: Left free.
        arena: For experts.
        max_context: Tokens (sequences × length) that the plan is made for.
        by_phase: Whether parts that only some requests need are in memory only then. If so, the above is what there is
            while text is read and written.
        lent: What a part is for → bytes that experts lend while that goes on; empty unless ``by_phase``.
    """

    budget: int
    process: int
    kv_cache: int
    activations: int
    io_buffers: int
    libraries: int
    margin: int
    arena: int
    max_context: int
    by_phase: bool = False
    lent: Mapping[PartUse, int] = field(default_factory=dict)

    @property
    def most_lent(self) -> int:
        """What experts lend at most for one use."""
        return max(self.lent.values(), default=0)

    @property
    def least_arena(self) -> int:
        """What is left for experts while the use goes on that takes most."""
        return self.arena - self.most_lent

    def spare(self, experts: int) -> int:
        """Bytes that neither experts of so many bytes nor anything else takes."""
        return max(0, self.budget - self.rest - self.margin - experts)

    @property
    def rest(self) -> int:
        """All that goes neither to experts nor to the margin."""
        return self.process + self.kv_cache + self.activations + self.io_buffers + self.libraries


def margin_nbytes(budget: int) -> int:
    """Bytes of a budget that are left free."""
    return max(_LEAST_MARGIN, budget // _MARGIN_SHARE)


def divide(
    budget: int,
    footprint: Footprint,
    max_context: int,
    *,
    process: int,
    by_phase: bool = False,
    compiled_kernels: Callable[[int], int] = compiled_kernels_nbytes,
) -> MemoryPlan:
    """Divides a budget, however small.

    Args:
        budget: Ceiling for the process in bytes.
        footprint: What the model takes.
        max_context: Tokens to provide for.
        process: Bytes that the process holds with dense weights loaded; with ``by_phase``, with those that are always
            in memory.
        by_phase: Whether parts that only some requests need are in memory only then.
        compiled_kernels: Bytes that the kernel compilers' caches take when they are full, by the budget.

    Returns:
        The plan. Its arena is what is left, which may be more than all experts take, or less than nothing.
    """
    shape = footprint.shape
    plan = MemoryPlan(
        budget=budget,
        process=process,
        kv_cache=shape.text_kv_bytes(max_context) if by_phase else shape.kv_bytes(max_context),
        activations=shape.text_bytes(max_context) if by_phase else shape.activation_bytes(max_context),
        io_buffers=footprint.buffers,
        libraries=_FIRST_USE + compiled_kernels(budget),
        margin=margin_nbytes(budget),
        arena=0,
        max_context=max_context,
        by_phase=by_phase,
        lent=_lent(footprint, max_context) if by_phase else {},
    )
    return replace(plan, arena=budget - plan.rest - plan.margin)


def _lent(footprint: Footprint, max_context: int) -> dict[PartUse, int]:
    """What experts lend for each use, beyond what is there while text is read and written.

    Layers have no activations while an encoder runs or the model speaks: those that are planned for serve both.
    """
    shape = footprint.shape
    text = shape.text_bytes(max_context)
    beside: dict[PartUse, int] = {
        "encoding": max(0, shape.encoder_bytes(max_context) - text),
        "speaking": shape.speech_kv_bytes(max_context)
        + (0 if shape.speech is None else max(0, shape.speech.activation_bytes(max_context) - text)),
    }
    return {use: parts + beside[use] for use in PART_USES if (parts := footprint.parts_for(use))}


def fits_whole(
    budget: int,
    footprint: Footprint,
    max_context: int,
    *,
    process: int,
    experts: int | None = None,
    compiled_kernels: Callable[[int], int] = compiled_kernels_nbytes,
) -> bool:
    """Whether a budget has room for all experts with every part in memory: then no part need ever leave it.

    Args:
        budget: As for :func:`divide`.
        footprint: Likewise.
        max_context: Likewise.
        process: Bytes that the process holds with all dense weights loaded.
        experts: Bytes that experts may take at most; default: all of them.
        compiled_kernels: As for :func:`divide`.
    """
    if not footprint.parts and not footprint.table:
        return True
    plan = divide(budget, footprint, max_context, process=process, compiled_kernels=compiled_kernels)
    return plan.arena >= (footprint.all_experts if experts is None else experts)


def least_budget(
    footprint: Footprint,
    max_context: int,
    *,
    process: int,
    by_phase: bool = False,
    experts: int | None = None,
    compiled_kernels: Callable[[int], int] = compiled_kernels_nbytes,
) -> int:
    """The least budget, in whole MiB, with which a model opens, whatever loading leaves behind; as :func:`divide`.

    Args:
        footprint: What the model takes.
        max_context: Tokens to provide for.
        process: As for :func:`divide`.
        by_phase: Likewise.
        experts: Bytes that are left for experts; default: what the fewest take.
        compiled_kernels: Bytes that the kernel compilers' caches take when they are full, by the budget.
    """
    needed = (footprint.least_experts if experts is None else experts) + LOADING_NBYTES

    def suffices(budget: int) -> bool:
        # The larger the budget, the larger margin and caches, but by less than it grows.
        plan = divide(
            budget, footprint, max_context, process=process, by_phase=by_phase, compiled_kernels=compiled_kernels
        )
        return plan.least_arena >= needed

    return least_that(suffices)


def least_that(suffices: Callable[[int], bool]) -> int:
    """The least number of bytes, in whole MiB, that suffices, where all that are larger do."""
    high = 1
    while not suffices(high << 20):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle << 20) else (middle, high)
    return high << 20


def plan_memory(
    budget: int,
    footprint: Footprint,
    max_context: int,
    *,
    process: int,
    by_phase: bool = False,
    compiled_kernels: Callable[[int], int] = compiled_kernels_nbytes,
) -> MemoryPlan:
    """Divides a budget that has to suffice; as :func:`divide`.

    Returns:
        The plan. Its arena is never larger than all experts.

    Raises:
        MemoryBudgetError: If less is left than the fewest experts take; says which budget would do.
    """
    plan = divide(budget, footprint, max_context, process=process, by_phase=by_phase, compiled_kernels=compiled_kernels)
    minimum = footprint.least_experts
    if plan.least_arena < minimum:
        enough = least_budget(
            footprint, max_context, process=process, by_phase=by_phase, compiled_kernels=compiled_kernels
        )
        parts = (
            ("interpreter, libraries and dense weights", plan.process),
            (f"the cache of {max_context} tokens", plan.kv_cache),
            ("activations", plan.activations),
            ("buffers for reading", plan.io_buffers),
            ("libraries at work, with the kernels that they compile,", plan.libraries),
            ("a margin", plan.margin),
            ("parts that only some requests need", plan.most_lent),
            ("the fewest experts", minimum),
        )
        raise MemoryBudgetError(
            f"A memory budget of {format_bytes(budget)} is too small: "
            + ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in parts if nbytes)
            + f" make {format_bytes(plan.rest + plan.margin + plan.most_lent + minimum)}.",
            advice=f'memory="{enough >> 20}MiB" would do; a smaller max_context needs less.{unbounded_note(budget)}',
            budget=budget,
            minimum=enough,
        )
    return replace(plan, arena=min(plan.arena, footprint.all_experts))
