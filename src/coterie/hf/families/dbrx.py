"""DBRX: three matrices of E · F rows in a child of the experts module."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from coterie.hf.families.arrangement import Arrangement, Family, FieldPlace

FIELDS = ("w1", "v1", "w2")


def _arrange(module: nn.Module) -> Arrangement:
    num_experts = int(cast(int, module.num_experts))
    fields = {}
    for name in FIELDS:
        parameter = cast(torch.Tensor, module.get_parameter(f"mlp.{name}"))
        shape = (parameter.shape[0] // num_experts, *parameter.shape[1:])
        fields[name] = FieldPlace(names=(f"mlp.{name}",), shape=shape, dtype=parameter.dtype)
    return Arrangement(family="dbrx", holding="rows", num_experts=num_experts, fields=fields)


DBRX = Family(name="dbrx", class_names=frozenset({"DbrxExperts"}), arrange=_arrange)
