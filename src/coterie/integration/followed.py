"""What follows attention in a decoder layer that is computed natively: experts, a feed-forward block, or both."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from coterie.hf.forwards import same_forward
from coterie.integration.quantised import activation_name
from coterie.integration.token_router import TokenRouter
from coterie.kernels import QuantisedLinear
from coterie.native import LayerBlock, LayerRouter, PackedMatrix
from coterie.passes.forwards import at, own

GATED = ("gate_proj", "up_proj", "down_proj")
"""The linear layers of a gated feed-forward block, by name."""
_SHARED, _SHARE = "shared_expert", "shared_expert_gate"


class Followed(NamedTuple):
    """What a layer that is computed natively does after attention, but for the experts.

    Attributes:
        router: Chooses experts; None where there are none, or they are left to the block that they are in.
        block: What every token goes through; None where there is none.
        stands_for: The modules that are not called.
        parents: Those of them whose children these are.
        weighed: Those of them whose ``weight`` is read where it lies.
    """

    router: LayerRouter | None = None
    block: LayerBlock | None = None
    stands_for: tuple[nn.Module, ...] = ()
    parents: tuple[nn.Module, ...] = ()
    weighed: tuple[nn.Module, ...] = ()


def followed_by(module: nn.Module | None) -> Followed:
    """What of a layer's ``mlp`` is computed natively; nothing where its classes are not known by their source.

    Args:
        module: The ``mlp``, whose router has its native forward.
    """
    if module is None or own(module) is not None:
        return Followed()
    block: Any = module
    dense = _gated(module)
    if dense is not None:
        return Followed(block=dense, stands_for=(module, *module.children()), parents=(module,))
    if not known_block(module) and not _known_shared(module):
        return Followed()
    forward = at(block.gate, "native")
    if not isinstance(forward, TokenRouter):
        return Followed()
    if known_block(module):
        return Followed(forward.parts, None, (module, block.gate), (module,), (block.gate,))
    shared, gate = getattr(block, _SHARED), getattr(block, _SHARE)
    both = _gated(shared, share=gate)
    if both is None:
        return Followed()
    stands_for = (module, block.gate, shared, *shared.children(), gate)
    return Followed(forward.parts, both, stands_for, (module, shared), (block.gate, gate))


def known_block(block: nn.Module | None) -> bool:
    """Whether a block is nothing but a router and experts, by its class's source."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    return block is not None and same_forward(type(block), Qwen3MoeSparseMoeBlock)


def gated_matrices(module: nn.Module) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix, str] | None:
    """Gate, up and down of a gated feed-forward block, and its activation; None for what is not known to be one.

    Args:
        module: The block.
    """
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP

    if own(module) is not None or not same_forward(type(module), Qwen3MoeMLP):
        return None
    gate, up, down = (packed_of(getattr(module, name, None)) for name in GATED)
    activation = activation_name(getattr(module, "act_fn", None))
    if gate is None or up is None or down is None or activation is None:
        return None
    return gate, up, down, activation


def packed_of(module: nn.Module | None) -> PackedMatrix | None:
    """A linear layer's weight as the native library multiplies by it; None where there is more to the layer."""
    if not isinstance(module, QuantisedLinear) or module.bias is not None or own(module) is not None:
        return None
    return module.packed


def _known_shared(block: nn.Module) -> bool:
    """Whether a block is a router, experts and one expert that all tokens share, by its class's source."""
    if not hasattr(block, _SHARED) or not hasattr(block, _SHARE):
        return False
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    return same_forward(type(block), Qwen2MoeSparseMoeBlock)


def _gated(module: nn.Module, share: Any = None) -> LayerBlock | None:
    found = gated_matrices(module)
    if found is None:
        return None
    if share is None:
        return LayerBlock(*found, None)
    weight = share._parameters.get("weight")
    if not isinstance(share, nn.Linear) or own(share) is not None or share.bias is not None or weight is None:
        return None
    plain = weight.dtype is torch.bfloat16 and weight.is_contiguous() and weight.is_cpu
    return LayerBlock(*found, weight) if plain else None
