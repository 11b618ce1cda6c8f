"""The experts classes that transformers' ``use_experts_implementation`` decorates: nearly all."""

from __future__ import annotations

import torch
from torch import nn

from coterie.hf.families.arrangement import Arrangement, stacked_fields

NAME = "decorated"


def is_experts_module(module: nn.Module) -> bool:
    """Whether transformers' ``use_experts_implementation`` decorated the module's class."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed")) and hasattr(
        type(module).forward, "__wrapped__"
    )


def stacked_parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of an experts module whose first dimension is the expert."""
    own = dict(module.named_parameters(recurse=False))
    weights = [p for name, p in own.items() if p.dim() >= 3]
    if not weights:
        return {}
    num_experts = weights[0].shape[0]
    return {name: p for name, p in own.items() if p.dim() >= 2 and p.shape[0] == num_experts}


def arrange(module: nn.Module) -> Arrangement | None:
    """A decorated module's stacked parameters are its fields."""
    stacked = stacked_parameters(module)
    if not stacked:
        return None
    return Arrangement(
        family=NAME,
        holding="stacked",
        num_experts=next(iter(stacked.values())).shape[0],
        fields=stacked_fields(stacked),
    )
