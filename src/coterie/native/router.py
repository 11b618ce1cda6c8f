"""The choice of a softmax router for a few tokens, in one call."""

from __future__ import annotations

import torch

from coterie.native.library import Library

MOST_EXPERTS, MOST_CHOICES = 1024, 64


def route(
    library: Library, tokens: torch.Tensor, weight: torch.Tensor, top_k: int, *, normalise: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, gate weights and ids: bfloat16 [T, E], bfloat16 [T, K], int64 [T, K], highest first.

    Args:
        library: The library.
        tokens: bfloat16, contiguous [T, D].
        weight: bfloat16, contiguous [E, D], of up to 1,024 experts.
        top_k: K, up to 64.
        normalise: Whether a token's weights are divided by their sum.
    """
    count, width = tokens.shape
    experts = weight.shape[0]
    logits = torch.empty(count, experts, dtype=torch.bfloat16, device="cpu")
    weights = torch.empty(count, top_k, dtype=torch.bfloat16, device="cpu")
    ids = torch.empty(count, top_k, dtype=torch.int64, device="cpu")
    library.functions.coterie_router(
        library.level,
        tokens.data_ptr(),
        weight.data_ptr(),
        count,
        width,
        experts,
        top_k,
        normalise,
        logits.data_ptr(),
        ids.data_ptr(),
        weights.data_ptr(),
    )
    return logits, weights, ids
