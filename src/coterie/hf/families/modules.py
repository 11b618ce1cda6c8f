"""Experts that are modules of their own, each with its linear layers: Switch Transformers and NLLB-MoE."""

from __future__ import annotations

from functools import partial

from torch import nn

from coterie.hf.families.arrangement import Arrangement, Family, FieldPlace


def _arrange(module: nn.Module, *, family: str) -> Arrangement | None:
    """Fields are named after the parameters of one expert, dots written as underscores."""
    experts = [name for name, _ in module.named_children() if name.startswith("expert_")]
    if not experts:
        return None
    first = dict(module.get_submodule("expert_0").named_parameters())
    fields = {
        name.replace(".", "_"): FieldPlace(
            names=tuple(f"expert_{e}.{name}" for e in range(len(experts))),
            shape=tuple(parameter.shape),
            dtype=parameter.dtype,
        )
        for name, parameter in first.items()
    }
    return Arrangement(family=family, holding="separate", num_experts=len(experts), fields=fields)


SWITCH = Family(
    name="switch_transformers",
    class_names=frozenset({"SwitchTransformersExperts"}),
    arrange=partial(_arrange, family="switch_transformers"),
)
NLLB = Family(name="nllb_moe", class_names=frozenset({"NllbMoeExperts"}), arrange=partial(_arrange, family="nllb_moe"))
