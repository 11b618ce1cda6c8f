"""Stand-ins for absent experts: the available expert whose router row points the same way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from coterie.errors import UsageError
from coterie.routing.policies import Routed, absent_pairs


def substitution_table(rows: Tensor, available: Tensor) -> Tensor:
    """For every expert of a bank, who serves for it.

    Args:
        rows: [E, H], the router's row of each expert (:func:`coterie.routing.router_rows`), on a real device.
        available: bool [E].

    Returns:
        int64 [E]: the expert itself where it is available, else the available expert with the highest cosine between
        router rows (the lowest id among equals; a row of zeros has cosine 0 with every other), or E everywhere if no
        expert is available.

    Raises:
        UsageError: If the shapes do not fit, or the rows hold no values yet (meta device).
    """
    num_experts = available.numel()
    if rows.ndim != 2 or rows.shape[0] != num_experts:
        raise UsageError(f"Router rows of shape {list(rows.shape)} do not belong to {num_experts} experts.")
    if rows.is_meta:
        raise UsageError("The router's weights are not loaded yet.", advice="Build the table after loading.")
    available = available.to(rows.device)
    table_E = torch.arange(num_experts, device=rows.device)
    if not bool(available.any()):
        return torch.full_like(table_E, num_experts)
    unit_EH = normalize(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
    cosine_EE = (unit_EH @ unit_EH.T).masked_fill(~available, -torch.inf)
    return torch.where(available, table_E, cosine_EE.argmax(dim=-1))


def nearest(top_k_index: Tensor, top_k_weights: Tensor, available: Tensor, table: Tensor) -> Routed:
    """Lets the nearest available expert stand in for each absent one, keeping the weight.

    Where a stand-in was chosen already, or stands in for several, its contributions add: the expert appears once, in
    the first of its slots, with the sum of the weights (summed in float32, rounded once to the weights' dtype), and the
    other slots are left out. ``w1 * f(x) + w2 * f(x) = (w1 + w2) * f(x)``, so this is the sum of the contributions with
    fewer roundings, and the expert is computed once. Tokens without absent experts are unchanged bit for bit. If no
    expert is available at all, absent slots are left out.

    Args:
        top_k_index: int64 [T, K].
        top_k_weights: [T, K], floating point.
        available: bool [E].
        table: int64 [E] from :func:`substitution_table`.
    """
    missing_TK = absent_pairs(top_k_index, available)
    absent = int(missing_TK.sum())
    if absent == 0:
        return Routed(top_k_index, top_k_weights, 0)
    num_experts = available.numel()
    touched = missing_TK.any(-1).nonzero().flatten()
    serve_E1 = torch.nn.functional.pad(table.to(top_k_index.device), (0, 1), value=num_experts)
    chosen_UK = top_k_index[touched]
    # Ids from E on are choices without an expert, or left out already.
    index_UK = torch.where(chosen_UK < num_experts, serve_E1[chosen_UK.clamp(max=num_experts)], chosen_UK)
    weights_UK = top_k_weights[touched]
    exact_UK = weights_UK.to(torch.promote_types(weights_UK.dtype, torch.float32))

    same_UKK = index_UK.unsqueeze(-1) == index_UK.unsqueeze(-2)
    merged_UK = (same_UKK * exact_UK.unsqueeze(-2)).sum(-1).to(weights_UK.dtype)
    repeated_UK = same_UKK.tril(diagonal=-1).any(-1)
    left_out_UK = repeated_UK | ((index_UK == num_experts) & missing_TK[touched])

    index = top_k_index.index_copy(0, touched, index_UK.masked_fill(left_out_UK, num_experts))
    weights = top_k_weights.index_copy(0, touched, merged_UK.masked_fill(left_out_UK, 0.0))
    return Routed(index, weights, absent)
