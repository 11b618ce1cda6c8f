"""What becomes of a token's absent experts, decided on the (ids, weights) that the router chose.

What computes the experts of every model sees ids and weights, so these policies work for every router. Shapes:
T tokens, K experts per token, E experts of the bank.

A slot that is left out holds the sentinel id E and weight 0, which adapters skip. (So do the eager forwards of
current transformers releases; those of 5.7 refuse the id.) Slots that are sentinels already, because a masked router
had fewer than K experts to choose from, stay as they are and are not counted as absent.

Every policy returns the very tensors it was given if nothing that was chosen is absent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from coterie.errors import ExpertMissingError
from coterie.spec import BankKey


class Routed(NamedTuple):
    """The experts of each token after a policy.

    Attributes:
        ids: int64 [T, K]; E where a slot is left out.
        weights: [T, K] in the dtype that the router gave.
        absent: Number of (token, expert) pairs that the router chose and that were not available.
    """

    ids: Tensor
    weights: Tensor
    absent: int


def drop(top_k_index: Tensor, top_k_weights: Tensor, available: Tensor) -> Routed:
    """Leaves absent experts out and scales the token's other weights so that their sum is unchanged.

    A token of which no expert is left, or whose remaining weights are all zero, gets nothing from the experts, so
    that the layer's residual passes through. Tokens without absent experts keep their weights bit for bit. The scaling
    is done in float32 (float64 for float64 weights) and rounded to the weights' dtype.

    Args:
        top_k_index: int64 [T, K].
        top_k_weights: [T, K], floating point.
        available: bool [E].
    """
    missing_TK = absent_pairs(top_k_index, available)
    absent = int(missing_TK.sum())
    if absent == 0:
        return Routed(top_k_index, top_k_weights, 0)
    return Routed(*leave_out(top_k_index, top_k_weights, missing_TK, available.numel()), absent)


def leave_out(top_k_index: Tensor, top_k_weights: Tensor, left_out_TK: Tensor, none: int) -> tuple[Tensor, Tensor]:
    """Leaves choices out and scales each token's other weights so that their sum is unchanged, as :func:`drop` does.

    Args:
        top_k_index: int64 [T, K].
        top_k_weights: [T, K], floating point.
        left_out_TK: bool [T, K].
        none: The id of what is left out.

    Returns:
        Ids [T, K] and weights [T, K].
    """
    exact = top_k_weights.to(torch.promote_types(top_k_weights.dtype, torch.float32))
    kept_TK = exact.masked_fill(left_out_TK, 0.0)
    total_T1 = exact.sum(-1, keepdim=True)
    left_T1 = kept_TK.sum(-1, keepdim=True)
    nothing_left_T1 = left_T1 == 0
    scaled_TK = kept_TK * (total_T1 / left_T1.masked_fill(nothing_left_T1, 1.0))
    touched_T1 = left_out_TK.any(-1, keepdim=True)
    weights = torch.where(touched_T1, scaled_TK.to(top_k_weights.dtype), top_k_weights)
    left_out_TK = left_out_TK | (touched_T1 & nothing_left_T1)
    return top_k_index.masked_fill(left_out_TK, none), weights.masked_fill(left_out_TK, 0.0)


def error(top_k_index: Tensor, top_k_weights: Tensor, available: Tensor, *, bank: BankKey) -> Routed:
    """Passes the routing on if every chosen expert is available.

    Args:
        top_k_index: int64 [T, K].
        top_k_weights: [T, K].
        available: bool [E].
        bank: Named in the error.

    Raises:
        ExpertMissingError: Otherwise; facts ``bank``, ``experts`` (ids) and ``absent`` (pairs).
    """
    missing_TK = absent_pairs(top_k_index, available)
    absent = int(missing_TK.sum())
    if absent == 0:
        return Routed(top_k_index, top_k_weights, 0)
    experts = tuple(sorted(set(top_k_index[missing_TK].tolist())))
    raise ExpertMissingError(
        f"Layer {bank.layer} of the {bank.component} (bank {bank.bank!r}) routed {absent} time(s) to "
        f"expert(s) {', '.join(map(str, experts))}, which the store does not hold.",
        advice="Extract them into the store, or open it with missing='mask', 'drop' or 'nearest'.",
        bank=bank,
        experts=experts,
        absent=absent,
    )


def absent_pairs(top_k_index: Tensor, available: Tensor) -> Tensor:
    """Marks the chosen experts that are not available.

    Args:
        top_k_index: int64 [T, K]; the sentinel E, and ids beyond it that some classes give to choices without an
            expert, are not experts and never marked.
        available: bool [E].

    Returns:
        bool [T, K].
    """
    absent_E1 = torch.nn.functional.pad(~available.to(top_k_index.device), (0, 1), value=False)
    return absent_E1[top_k_index.clamp(max=available.numel())]
