"""JetMoE: experts in the feed-forward and in the attention, as pairs of stacked projections beside their router."""

from __future__ import annotations

from functools import partial

from torch import nn

from coterie.hf.families.arrangement import Arrangement, Family, FieldPlace

FIELDS = ("input_linear", "output_linear")


def _arrange(module: nn.Module, *, family: str, bank: str) -> Arrangement:
    stacks = {name: module.get_parameter(f"{name}.weight") for name in FIELDS}
    return Arrangement(
        family=family,
        holding="stacked",
        num_experts=stacks[FIELDS[0]].shape[0],
        fields={
            name: FieldPlace(names=(f"{name}.weight",), shape=tuple(stack.shape[1:]), dtype=stack.dtype)
            for name, stack in stacks.items()
        },
        has_router=True,
        bank=bank,
    )


FEED_FORWARD = Family(
    name="jetmoe_mlp", class_names=frozenset({"JetMoeMoE"}), arrange=partial(_arrange, family="jetmoe_mlp", bank="mlp")
)
ATTENTION = Family(
    name="jetmoe_attention",
    class_names=frozenset({"JetMoeMoA"}),
    arrange=partial(_arrange, family="jetmoe_attention", bank="attention"),
)
