"""How a byte budget for the whole process is divided, and what is left for experts."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.errors import MemoryBudgetError
from coterie.spec import ContextShape, format_bytes, round_up

_LEAST_MARGIN = 64 << 20
_MARGIN_SHARE = 50
_LOADING = 16 << 20
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


def context_nbytes(shape: ContextShape, max_context: int, *, compiled_kernels: int) -> int:
    """Bytes of a budget that go neither to the process as it is loaded nor to experts, margin not included.

    Keys and values and the activations of ``max_context`` tokens, and what libraries take once they compute.
    """
    return shape.kv_bytes(max_context) + shape.activation_bytes(max_context) + _FIRST_USE + compiled_kernels


def margin_nbytes(budget: int) -> int:
    """Bytes of a budget that are left free."""
    return max(_LEAST_MARGIN, budget // _MARGIN_SHARE)


def least_budget(needed: int) -> int:
    """The least budget for a process that needs so many bytes, margin not included; in whole MiB."""
    enough = (needed + _LEAST_MARGIN) * _MARGIN_SHARE // (_MARGIN_SHARE - 1) + _LOADING
    return round_up(enough, 1 << 20)


def plan_memory(
    *,
    budget: int,
    process: int,
    shape: ContextShape,
    max_context: int,
    io_buffers: int,
    minimum: int,
    total: int,
    compiled_kernels: int = 0,
    kernels_note: str = "",
) -> MemoryPlan:
    """Divides a budget.

    Args:
        budget: Ceiling for the process in bytes.
        process: Bytes that the process holds with dense weights loaded.
        shape: The model's dimensions.
        max_context: Tokens to provide for.
        io_buffers: Bytes for reads in flight.
        minimum: The least arena that works.
        total: Bytes of all experts; the arena is never larger.
        compiled_kernels: Bytes that the kernel compilers' caches take when they are full.
        kernels_note: What to say about them in a refusal.

    Raises:
        MemoryBudgetError: If less than ``minimum`` is left; says which budget would do.
    """
    margin = margin_nbytes(budget)
    kv_cache, activations = shape.kv_bytes(max_context), shape.activation_bytes(max_context)
    libraries = _FIRST_USE + compiled_kernels
    rest = process + kv_cache + activations + io_buffers + libraries
    arena = budget - rest - margin
    if arena < minimum:
        enough = least_budget(rest + minimum)
        parts = (
            ("interpreter, libraries and dense weights", process),
            (f"the cache of {max_context} tokens", kv_cache),
            ("activations", activations),
            ("buffers for reading", io_buffers),
            ("libraries at work, with the kernels that they compile,", libraries),
            ("a margin", margin),
            ("the fewest experts", minimum),
        )
        raise MemoryBudgetError(
            f"A memory budget of {format_bytes(budget)} is too small: "
            + ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in parts if nbytes)
            + f" make {format_bytes(rest + margin + minimum)}.",
            advice=f'memory="{enough >> 20}MiB" would do; a smaller max_context needs less.{kernels_note}',
            budget=budget,
            minimum=enough,
        )
    return MemoryPlan(
        budget=budget,
        process=process,
        kv_cache=kv_cache,
        activations=activations,
        io_buffers=io_buffers,
        libraries=libraries,
        margin=margin,
        arena=min(arena, total),
        max_context=max_context,
    )
