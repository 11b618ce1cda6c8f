"""A router's forward that is native for a few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coterie.hf.forwards import same_forward
from coterie.native import LayerRouter, Library, route
from coterie.native.router import MOST_CHOICES, MOST_EXPERTS

_FEW = 16
"""Tokens up to which a router is computed here."""


class TokenRouter:
    """A softmax router's forward: native for a few tokens, else the class's own.

    Args:
        module: The router.
        native: The native library.
        normalise: Whether the class divides a token's weights by their sum.
    """

    def __init__(self, module: nn.Module, native: Library, *, normalise: bool) -> None:
        self._module: Any = module
        self._class_forward = type(module).forward
        self._native = native
        self._normalise = normalise

    @classmethod
    def of(cls, module: nn.Module, native: Library) -> TokenRouter | None:
        """For a router whose class is known by its source; None for others."""
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

        any_module: Any = module
        if not hasattr(module, "top_k") or "weight" not in module._parameters:
            return None
        if hasattr(module, "norm_topk_prob") and same_forward(type(module), Qwen3MoeTopKRouter):
            normalise = bool(any_module.norm_topk_prob)
        elif hasattr(module, "hidden_dim") and _always_normalises(type(module)):
            normalise = True
        else:
            return None
        if any_module.num_experts > MOST_EXPERTS or any_module.top_k > MOST_CHOICES:
            return None
        return cls(module, native, normalise=normalise)

    @property
    def parts(self) -> LayerRouter:
        """What it computes with."""
        return LayerRouter(self._module._parameters["weight"], self._module.top_k, self._normalise)

    def __call__(self, hidden_states: torch.Tensor) -> Any:
        """What the class computes."""
        module = self._module
        tokens = hidden_states.reshape(-1, module.hidden_dim).contiguous()
        weight = module._parameters["weight"]
        if (
            tokens.shape[0] > _FEW
            or tokens.dtype is not torch.bfloat16
            or weight.dtype is not torch.bfloat16
            or not weight.is_contiguous()
            or hidden_states.requires_grad
            or torch.is_autocast_enabled("cpu")
        ):
            return self._class_forward(module, hidden_states)
        return route(self._native, tokens, weight, module.top_k, normalise=self._normalise)

    def preview(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Ids of the experts that it would choose, [T, K]."""
        ids: torch.Tensor = self(hidden_states)[2]
        return ids


def _always_normalises(cls: type[nn.Module]) -> bool:
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextTopKRouter

    return same_forward(cls, Qwen3VLMoeTextTopKRouter)
