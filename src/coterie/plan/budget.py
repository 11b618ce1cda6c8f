"""How a byte budget for the whole process is divided, and what is left for experts."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.errors import MemoryBudgetError
from coterie.spec import format_bytes, round_up

_LEAST_MARGIN = 64 << 20
_MARGIN_SHARE = 50
_LOADING = 16 << 20
"""What loading may leave behind beyond the dense weights; added to the budget that a refusal names."""
ENCODER_TOKENS = 1024
"""Tokens that come of pictures and sounds, in one forward pass, for which a plan provides."""
_FIRST_USE = 32 << 20
"""Pages of libraries, thread pools and heap that are touched only by the first forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """The dimensions of a model that the memory of a forward pass depends on; maxima over its components.

    Attributes:
        hidden: Width of the residual stream.
        attention: Query heads × head dimension.
        kv_per_token: Bytes of keys and values per token, all layers.
        intermediate: Width of the widest dense feed-forward layer.
        experts: Experts per layer.
        top_k: Experts per token.
        vocabulary: Rows of the output head.
        itemsize: Bytes per element of activations.
        score_heads: Heads whose whole matrices of attention scores are in memory at once; 0 where attention is fused.
        all_logits: Whether a prefill computes the logits of every token, and not only of the last.
        encoder_per_token: Bytes that the widest encoder of pictures or sounds takes per token that comes of them.
    """

    hidden: int
    attention: int
    kv_per_token: int
    intermediate: int
    experts: int
    top_k: int
    vocabulary: int
    itemsize: int
    score_heads: int = 0
    all_logits: bool = False
    encoder_per_token: int = 0

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of ``tokens`` tokens; doubled, since a growing cache is copied when it grows."""
        return 2 * self.kv_per_token * tokens

    def activation_bytes(self, tokens: int) -> int:
        """An upper bound on the activations of a prefill of ``tokens`` tokens.

        Counted are the tensors that live at once in one layer: ten of the residual's width, four of the attention's,
        three of the feed-forward's, two rows per chosen expert, three float32 rows of router scores, the attention
        mask, and float32 logits of the last position; and where the model makes them, the scores of all heads (twice in
        float32, twice in its own dtype) and the logits of all positions. An encoder runs before the layers do, so the
        larger of the two counts; it is provided for up to ``ENCODER_TOKENS`` tokens of pictures and sounds at once.
        """
        width = 10 * self.hidden + 4 * self.attention + 3 * self.intermediate + 2 * self.top_k * self.hidden
        router = 3 * 4 * self.experts + 4 * 8 * self.top_k
        square = self.itemsize + self.score_heads * (2 * 4 + 2 * self.itemsize)
        logits = 2 * 4 * self.vocabulary + (tokens * self.vocabulary * self.itemsize if self.all_logits else 0)
        layers = tokens * (width * self.itemsize + router) + tokens * tokens * square + logits
        return max(layers, min(tokens, ENCODER_TOKENS) * self.encoder_per_token)


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

    Raises:
        MemoryBudgetError: If less than ``minimum`` is left; says which budget would do.
    """
    margin = max(_LEAST_MARGIN, budget // _MARGIN_SHARE)
    kv_cache, activations = shape.kv_bytes(max_context), shape.activation_bytes(max_context)
    libraries = _FIRST_USE + compiled_kernels
    rest = process + kv_cache + activations + io_buffers + libraries
    arena = budget - rest - margin
    if arena < minimum:
        enough = (rest + minimum + _LEAST_MARGIN) * _MARGIN_SHARE // (_MARGIN_SHARE - 1) + _LOADING
        enough = round_up(enough, 1 << 20)
        raise MemoryBudgetError(
            f"A memory budget of {format_bytes(budget)} is too small: interpreter, libraries and dense weights take "
            f"{format_bytes(process)}, the cache of {max_context} tokens {format_bytes(kv_cache)}, activations "
            f"{format_bytes(activations)}, compiled kernels {format_bytes(libraries)}, and experts need at least "
            f"{format_bytes(minimum)}.",
            advice=f'memory="{enough >> 20}MiB" would do; a smaller max_context needs less.',
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
