"""Attention and routers of a decode step in few native calls, in models whose linear layers are in a lossy scheme.

In such a model output is the rounded weights' within rounding, not to the bit; so what is between its products may be
computed with fewer roundings and without the cost of some thirty operations of torch for every layer. Which classes
compute what is computed here is decided by their source. Whatever is unusual about a call (several tokens, masks,
autocast, other caches) goes to the class's own forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.hf.forwards import same_forward
from coterie.integration.linear import QuantisedLinear
from coterie.native import Library, attention_served, library, rotate, route, token_attention
from coterie.native.router import MOST_CHOICES, MOST_EXPERTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEW = 16
"""Tokens up to which a router is computed here."""


class _TokenForward:
    """A module's forward that is native where it can be.

    Args:
        module: The module.
        native: The native library.
    """

    def __init__(self, module: nn.Module, native: Library) -> None:
        self._module: Any = module
        self._class_forward = type(module).forward
        self._native = native


class TokenAttention(_TokenForward):
    """An attention module's forward: native for one token after others, else the class's own."""

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """What the class computes."""
        module, (cosine, sine) = self._module, position_embeddings
        if (
            hidden_states.shape[:2] != (1, 1)
            or attention_mask is not None
            or past_key_values is None
            or others.get("output_attentions")
            or hidden_states.dtype is not torch.bfloat16
            or hidden_states.requires_grad
            or cosine.shape != (1, 1, module.head_dim)
            or cosine.dtype is not torch.bfloat16
            or module.config._attn_implementation != "sdpa"
            or torch.is_autocast_enabled("cpu")
        ):
            return self._class_forward(
                module, hidden_states, position_embeddings, attention_mask, past_key_values, **others
            )
        width = module.head_dim
        query = module.q_norm(module.q_proj(hidden_states).view(1, 1, -1, width)).contiguous()
        key = module.k_norm(module.k_proj(hidden_states).view(1, 1, -1, width)).contiguous()
        value = module.v_proj(hidden_states).view(1, -1, 1, width)
        cosine, sine = cosine.contiguous(), sine.contiguous()
        rotate(self._native, query, cosine, sine)
        rotate(self._native, key, cosine, sine)
        keys, values = past_key_values.update(key.view(1, -1, 1, width), value, module.layer_idx)
        if keys.stride()[2:] != (width, 1) or values.stride()[2:] != (width, 1):
            keys, values = keys.contiguous(), values.contiguous()
        return module.o_proj(token_attention(self._native, query, keys, values, module.scaling)), None


class TokenRouter(_TokenForward):
    """A softmax router's forward: native for a few tokens, else the class's own."""

    def __call__(self, hidden_states: torch.Tensor) -> Any:
        """What the class computes."""
        module = self._module
        tokens = hidden_states.reshape(-1, module.hidden_dim)
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
        return route(self._native, tokens, weight, module.top_k, normalise=bool(module.norm_topk_prob))


def quicken_tokens(model: PreTrainedModel) -> None:
    """Gives attention and routers their native forwards where linear layers are in a scheme.

    Args:
        model: With its weights, and normalisation as it is to stay.
    """
    native = library()
    if native is None:
        return
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention, Qwen3MoeTopKRouter

    helpers = ("apply_rotary_pos_emb", "rotate_half")
    lossy = any(isinstance(module, QuantisedLinear) for module in model.modules())
    for module in model.modules() if lossy else ():
        if "forward" in module.__dict__:
            continue
        cls = type(module)
        if isinstance(getattr(module, "q_proj", None), QuantisedLinear) and hasattr(module, "q_norm"):
            if same_forward(cls, Qwen3MoeAttention, helpers=helpers) and _serves(module):
                module.__dict__["forward"] = TokenAttention(module, native)
        elif hasattr(module, "norm_topk_prob") and same_forward(cls, Qwen3MoeTopKRouter) and _chooses(module):
            module.__dict__["forward"] = TokenRouter(module, native)


def _serves(module: Any) -> bool:
    heads = module.q_proj.out_features // module.head_dim
    kv_heads = module.k_proj.out_features // module.head_dim
    return module.sliding_window is None and attention_served(heads, kv_heads, module.head_dim)


def _chooses(module: Any) -> bool:
    return bool(module.num_experts <= MOST_EXPERTS and module.top_k <= MOST_CHOICES)
