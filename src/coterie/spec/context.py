"""The dimensions of a model that the memory of a forward pass depends on."""

from __future__ import annotations

from dataclasses import dataclass

ENCODER_TOKENS = 1024
"""Tokens that come of pictures and sounds, in one forward pass, for which a plan provides."""


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
