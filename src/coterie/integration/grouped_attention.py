"""Attention whose heads share keys and values, without the copies of these that transformers makes if there is a mask.

With grouped-query attention several heads of the query read the same keys and values. transformers repeats them for
every head before it calls torch's kernel, unless there is no mask: on other devices the kernel would have no mask then.
On the CPU it has, and its products are the same ones, so the bits are, too. A turn of 49 tokens after 2,000 others gets
its attention in half the time, and the copies take no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "sdpa"


class GroupedAttention:
    """What transformers calls as ``sdpa``: for the attention of our models without copies, for others as before.

    Args:
        stock: What transformers had under that name.
    """

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._ours: WeakSet[nn.Module] = WeakSet()
        code = stock.__code__
        # What it makes nothing of, it may be given: its keywords, and names that it looks for among further ones.
        self._read = {*code.co_varnames[: code.co_argcount], *(one for one in code.co_consts if isinstance(one, str))}

    def serve(self, model: nn.Module) -> None:
        """From now on the attention of a model is computed here."""
        self._ours.update(module for module in model.modules() if _groups(module) > 1)

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention as torch's kernel computes it.

        Args:
            module: The attention layer.
            query: [B, H, Q, D].
            key: [B, G, T, D]; H is a multiple of G.
            value: [B, G, T, D].
            attention_mask: Which tokens are looked at, or what is added to their scores: [B, 1 or H, Q, T].
            dropout: Share of the weights that are left out.
            scaling: Factor of the scores.
            is_causal: Whether later tokens are hidden, where there is no mask.
            **kwargs: What classes have for other implementations.

        Returns:
            [B, Q, H, D], and no weights.
        """
        if (
            torch.compiler.is_compiling()
            or not isinstance(attention_mask, torch.Tensor)
            or query.shape[2] == 1
            or dropout
            or module not in self._ours
            or query.device.type != "cpu"
            or (query.requires_grad and torch.is_grad_enabled())
            or attention_mask.shape[-1] != key.shape[2]
            or key.shape[1] * _groups(module) != query.shape[1]
            or any(value is not None and value is not False and name in self._read for name, value in kwargs.items())
        ):
            return self._stock(  # type: ignore[no-any-return]
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=is_causal,
                **kwargs,
            )
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None


def share_keys_and_values(model: PreTrainedModel) -> None:
    """Has transformers compute the grouped-query attention of a model without copies, where it does so by ``sdpa``.

    Args:
        model: A skeleton or a model.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ALL_ATTENTION_FUNCTIONS[_NAME]
    if not isinstance(known, GroupedAttention):
        if not hasattr(known, "__code__"):
            return  # somebody else's, which may do anything
        known = ALL_ATTENTION_FUNCTIONS[_NAME] = GroupedAttention(known)
    known.serve(model)


def _groups(module: nn.Module) -> int:
    """Heads of the query for each of the keys."""
    groups = getattr(module, "num_key_value_groups", 1)
    return groups if isinstance(groups, int) else 1
