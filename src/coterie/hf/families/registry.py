"""Which class belongs to which family. What is in none, and not decorated, has no experts that can be streamed."""

from __future__ import annotations

from torch import nn

from coterie.hf.families import decorated
from coterie.hf.families.arrangement import Arrangement, Family
from coterie.hf.families.dbrx import DBRX
from coterie.hf.families.jetmoe import ATTENTION, FEED_FORWARD
from coterie.hf.families.modules import NLLB, SWITCH
from coterie.hf.families.stacked import LLAMA4, LONGCAT, STEP

DECORATED = decorated.NAME
"""Name of the family of every class that transformers decorates."""

ADAPTED: tuple[Family, ...] = (SWITCH, NLLB, LLAMA4, DBRX, FEED_FORWARD, ATTENTION, LONGCAT, STEP)
"""The families of undecorated classes. Each has an adapter in :mod:`coterie.integration.adapters`."""

OUT_OF_SCOPE = {
    "DogeCDMoE": "its experts are rows of two embedding tables, looked up one by one for every token",
}
"""Module class → why it is not streamed."""

_BY_CLASS_NAME = {class_name: family for family in ADAPTED for class_name in family.class_names}


def arrangement_of(module: nn.Module) -> Arrangement | None:
    """How a module holds a bank of experts, or None if it holds none."""
    family = _BY_CLASS_NAME.get(type(module).__name__)
    if family is not None and type(module).__module__.startswith("transformers."):
        return family.arrange(module)
    return decorated.arrange(module) if decorated.is_experts_module(module) else None
