"""Whether several rows of a model will have the bits of each alone, told from its skeleton before it is opened.

:class:`~coterie.integration.rows.RowLayers` says it of a model that is open.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from coterie.hf.experts import uses_common_forward
from coterie.hf.last_logits import output_head
from coterie.hf.rotary_lengths import goes_by_length
from coterie.integration.followed import known_block
from coterie.integration.token_layer import LINEARS, known_layer
from coterie.native import PackedMatrix, knows, library
from coterie.native.attention import attention_served


def why_not_exact(model: Any, linears: Mapping[str, str], schemes: Collection[str]) -> str | None:
    """Why rows of a model would not have the bits of each alone if they were computed together; None if they will.

    Args:
        model: The skeleton.
        linears: Paths of the linear layers that are stored in a scheme → that scheme.
        schemes: Those of the experts; ``native`` only if all experts of a layer are so, and an empty one if experts are
            absent.
    """
    layers = [module for module in model.modules() if isinstance(getattr(module, "self_attn", None), nn.Module)]
    layers = [layer for layer in layers if known_layer(type(layer), type(layer.self_attn))]
    if not layers or any(not known_block(getattr(layer, "mlp", None)) for layer in layers):
        return "its layers are not those of Qwen3-MoE"
    if any(map(goes_by_length, model.modules())):
        return "its rotary embedding goes by the longest sequence"
    if any(not _served(layer.self_attn) for layer in layers) or model.dtype is not torch.bfloat16:
        return "its layers have a form that is not computed natively"
    head = output_head(model)
    linear = [getattr(layer.self_attn, name) for layer in layers for name in LINEARS]
    stored = {id(model.get_submodule(path)): scheme for path, scheme in linears.items()}
    native = library()
    if any(id(one) not in stored for one in (*linear, head)):
        return "not all of its linear layers are stored in a lossy scheme"
    if "" in schemes:
        return "some of its experts are absent"
    if native is None:
        return "the native library was not built"
    forms = {(stored[id(one)], one.in_features) for one in (*linear, head) if isinstance(one, nn.Linear)}
    if not all(PackedMatrix.served(native, scheme, width) for scheme, width in forms):
        return "not all of its linear layers are stored in a lossy scheme"
    if not all(map(knows, schemes)):
        return "not every layer has experts that are stored in a lossy scheme"
    experts = [layer.mlp.experts for layer in layers]
    sizes = {size for one in experts if uses_common_forward(one) for size in one.down_proj.shape[-2:]}
    if not sizes or not all(PackedMatrix.served(native, one, size) for one in schemes for size in sizes):
        return "its experts have a form that is not computed natively"
    return None


def _served(attention: Any) -> bool:
    """Whether attention has a form that is computed natively."""
    width = attention.head_dim
    heads, kept = (one.out_features // width for one in (attention.q_proj, attention.k_proj))
    biased = any(getattr(attention, name).bias is not None for name in LINEARS)
    windowed = getattr(attention, "sliding_window", None) is not None
    return not biased and not windowed and attention_served(heads, kept, width)
