"""Undecorated classes with ``gate_up_proj`` and ``down_proj`` stacked: Step-3.7, LongCat-Flash, Llama 4."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import nn

from coterie.hf.families.arrangement import Arrangement, Family, FieldPlace
from coterie.hf.families.decorated import stacked_parameters


def _arrange(module: nn.Module, *, family: str, identities: int = 0) -> Arrangement | None:
    own = dict(module.named_parameters(recurse=False))
    if not stacked_parameters(module):
        return None
    fields = {
        name: FieldPlace(names=(name,), shape=tuple(own[name].shape[1:]), dtype=own[name].dtype)
        for name in ("gate_up_proj", "down_proj")
    }
    # LongCat-Flash's gate_up_proj has rows for its identity experts too, which nothing reads.
    num_experts = own["down_proj"].shape[0]
    return Arrangement(family=family, holding="stacked", num_experts=num_experts, fields=fields, identities=identities)


def _arrange_longcat(module: nn.Module) -> Arrangement | None:
    return _arrange(module, family="longcat_flash", identities=int(cast(int, module.zero_expert_num)))


STEP = Family(name="step3p7", class_names=frozenset({"Step3p7Experts"}), arrange=partial(_arrange, family="step3p7"))
LONGCAT = Family(name="longcat_flash", class_names=frozenset({"LongcatFlashExperts"}), arrange=_arrange_longcat)
LLAMA4 = Family(name="llama4", class_names=frozenset({"Llama4TextExperts"}), arrange=partial(_arrange, family="llama4"))
