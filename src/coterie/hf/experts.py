"""What an experts class of transformers computes by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from coterie.hf.forwards import same_forward

ExpertsFunction = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def own_forward(module: nn.Module) -> ExpertsFunction:
    """What the class itself computes: its eager forward if transformers decorated it, else its forward."""
    forward = type(module).forward
    own: ExpertsFunction = getattr(forward, "__wrapped__", forward)
    return own


def uses_common_forward(module: nn.Module) -> bool:
    """Whether the class computes what most classes do: SwiGLU over ``gate_up_proj [E,2I,H]`` and ``down_proj [E,H,I]``.

    Compared as syntax trees with the class of Qwen3-MoE in the same release, so a class that changes its arithmetic
    falls back to its own forward instead of being computed wrongly.
    """
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    cls = type(module)
    if not hasattr(cls, "_apply_gate") or not hasattr(cls.forward, "__wrapped__"):
        return False
    same_gate = cls._apply_gate is Qwen3MoeExperts._apply_gate
    return same_gate and same_forward(cls, Qwen3MoeExperts)
