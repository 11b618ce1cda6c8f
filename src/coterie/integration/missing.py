"""What is done about experts that are not in the store: masks in routers, policies behind them."""

from __future__ import annotations

import functools
from collections.abc import Collection

import torch
from torch import nn

from coterie.hf.banks import ExpertBank
from coterie.passes.bank import MissingPolicy
from coterie.routing import (
    Routed,
    adapt_routing,
    drop,
    error,
    find_router,
    nearest,
    router_rows,
    substitution_table,
)
from coterie.spec import Missing


def adapt_block(
    model: nn.Module, bank: ExpertBank, present: Collection[int], missing: Missing | None, experts_per_token: int | None
) -> MissingPolicy | None:
    """Prepares one bank's block for absent experts and another number of experts per token.

    Args:
        model: The skeleton.
        bank: The bank.
        present: Ids of the experts in the store.
        missing: The policy; None if all experts are present.
        experts_per_token: Overrides the model's K.

    Returns:
        The policy to apply to what the router chose, or None where nothing can be absent.

    Raises:
        UnsupportedError: If the block's routing has no adapter and one is needed.
    """
    available = torch.zeros(bank.num_experts + bank.identities, dtype=torch.bool, device="cpu")
    available[list(present)] = True
    available[bank.num_experts :] = True
    complete = len(present) == bank.num_experts
    block = model.get_submodule(bank.router_block)
    masked = missing == "mask" and not complete
    if masked or experts_per_token is not None:
        purpose = "missing='mask'" if masked else "experts_per_token"
        adapt_routing(
            block,
            available=available if masked else None,
            experts_per_token=experts_per_token,
            purpose=purpose,
        )
    if complete or masked or missing is None:
        return None
    if missing == "drop":
        return functools.partial(drop, available=available)
    if missing == "nearest":
        router = find_router(block).module
        router_rows(router, available.numel())  # to refuse a router without them before anything is loaded
        return NearestPolicy(router, available)
    return functools.partial(error, available=available, bank=bank.key)


class NearestPolicy:
    """Replaces absent experts by the available one with the most similar router row.

    The table is computed at the first use, when the router's weights are loaded.
    """

    def __init__(self, router: nn.Module, available: torch.Tensor) -> None:
        self._router = router
        self._available = available
        self._table: torch.Tensor | None = None

    def __call__(self, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Routed:
        """Applies the table to what the router chose."""
        if self._table is None:
            self._table = substitution_table(router_rows(self._router, self._available.numel()), self._available)
        return nearest(top_k_index, top_k_weights, self._available, self._table)
