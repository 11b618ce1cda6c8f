"""The shapes that can be generated, by name."""

from __future__ import annotations

from synthetic import Dimensions

SHAPES: dict[str, Dimensions] = {
    # The released Qwen3-30B-A3B.
    "qwen3-30b-a3b": Dimensions(layers=48, vocabulary=151936),
    # The text part of the released Qwen3-Omni-30B-A3B's thinker; its towers are dense and have no peer to run them.
    "qwen3-omni-thinker": Dimensions(layers=48, vocabulary=152064),
    # A layer as in Qwen3-30B-A3B, few of them: 1.4 GB of experts at four bits, 4.8 GB as bf16 checkpoint.
    "four-layers": Dimensions(layers=4, vocabulary=32000),
    "small": Dimensions(
        layers=4, experts=32, top_k=4, hidden=512, expert_hidden=256, heads=8, kv_heads=2, head_dim=64, vocabulary=4096
    ),
    "tiny": Dimensions(
        layers=2, experts=8, top_k=2, hidden=256, expert_hidden=64, heads=4, kv_heads=2, head_dim=64, vocabulary=512
    ),
}
"""Attention, router and expert sizes; the default of everything that is not named is that of Qwen3-30B-A3B."""


def weight_count(dimensions: Dimensions) -> int:
    """Weights of the matrices: embeddings, attention, experts (routers and norms are left out)."""
    each = 3 * dimensions.hidden * dimensions.expert_hidden * dimensions.experts
    heads = 2 * dimensions.head_dim * (dimensions.heads + dimensions.kv_heads)
    return dimensions.layers * (each + heads * dimensions.hidden) + 2 * dimensions.vocabulary * dimensions.hidden


def store_nbytes(dimensions: Dimensions) -> int:
    """About the bytes of the store: 4.5 bits, the embedding in bfloat16."""
    embedding = dimensions.vocabulary * dimensions.hidden
    return (weight_count(dimensions) * 9 + embedding * (2 * 16 - 9)) // 16


def gguf_nbytes(dimensions: Dimensions) -> int:
    """About the bytes of the GGUF file: 4.5 bits."""
    return weight_count(dimensions) * 9 // 16
