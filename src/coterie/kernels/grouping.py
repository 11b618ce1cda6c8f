"""Which tokens go to which expert, in the row order of transformers' eager forward."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Grouping(NamedTuple):
    """The (token, slot) pairs of a batch, sorted by expert.

    Attributes:
        experts: Ids of the experts that got at least one token, ascending.
        tokens: For each of them, int64 [N]: rows of the input.
        slots: For each of them, int64 [N]: which of the K choices of that token.
    """

    experts: list[int]
    tokens: list[torch.Tensor]
    slots: list[torch.Tensor]


def group_by_expert(top_k_index_TK: torch.Tensor, num_experts: int) -> Grouping:
    """Groups tokens by expert.

    Within an expert, rows are ordered by slot and then by token, as ``torch.where`` on transformers' one-hot mask
    [E, K, T] gives them: the position of a row within a GEMM can change its rounding.

    Args:
        top_k_index_TK: int64 [T, K]; the id ``num_experts`` marks a slot that is left out.
        num_experts: E.
    """
    num_tokens = top_k_index_TK.shape[0]
    flat = top_k_index_TK.t().reshape(-1)
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=num_experts + 1).tolist()
    slots, tokens = order.div(num_tokens, rounding_mode="floor"), order.remainder(num_tokens)
    sizes = [count for count in counts if count]
    experts = [expert for expert, count in enumerate(counts) if count]
    grouped = Grouping(experts, list(torch.split(tokens, sizes)), list(torch.split(slots, sizes)))
    if experts and experts[-1] == num_experts:
        return Grouping(experts[:-1], grouped.tokens[:-1], grouped.slots[:-1])
    return grouped
