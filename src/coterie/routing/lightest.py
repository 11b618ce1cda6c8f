"""Which of a token's chosen experts weigh least, to be left out. Shapes: T tokens, K experts per token."""

from __future__ import annotations

import torch
from torch import Tensor


def light_choices(
    top_k_index: Tensor, top_k_weights: Tensor, *, none: int, most: Tensor | None = None, min_gate: float = 0.0
) -> Tensor:
    """Marks the choices beyond a token's heaviest ones, and those far below the heaviest.

    Slots without an expert are never marked, and do not count; of equal weights the first stay. The heaviest always
    stays, unless ``most`` is 0.

    Args:
        top_k_index: int64 [T, K]; ids from ``none`` on are no experts.
        top_k_weights: [T, K], floating point.
        none: The first id that is no expert's.
        most: int64 [T], how many of each token's experts stay; None for all.
        min_gate: Share of the token's highest weight below which an expert is left out.

    Returns:
        bool [T, K].
    """
    there_TK = top_k_index < none
    weights_TK = top_k_weights.masked_fill(~there_TK, -torch.inf)
    light_TK = torch.zeros_like(there_TK)
    if most is not None:
        ranks_TK = weights_TK.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        light_TK |= ranks_TK >= most[:, None]
    if min_gate > 0:
        light_TK |= weights_TK < min_gate * weights_TK.amax(dim=-1, keepdim=True)
    return light_TK & there_TK
