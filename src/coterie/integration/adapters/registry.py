"""Which adapter computes which family."""

from __future__ import annotations

from coterie.hf.families import DECORATED
from coterie.integration.adapters.adapter import Adapter, AdapterSite
from coterie.integration.adapters.class_forward import ClassForward
from coterie.integration.adapters.decorated import DecoratedExperts
from coterie.integration.adapters.jetmoe import JetMoeExperts
from coterie.integration.adapters.llama4 import Llama4Block
from coterie.integration.adapters.modules import NllbExperts, SwitchExperts

ADAPTERS: dict[str, type[Adapter]] = {
    DECORATED: DecoratedExperts,
    "step3p7": ClassForward,
    "longcat_flash": ClassForward,
    "dbrx": ClassForward,
    "llama4": Llama4Block,
    "jetmoe_mlp": JetMoeExperts,
    "jetmoe_attention": JetMoeExperts,
    "switch_transformers": SwitchExperts,
    "nllb_moe": NllbExperts,
}
"""Family → adapter; one for every family of :mod:`coterie.hf.families`."""


def adapt(site: AdapterSite) -> Adapter:
    """Takes the experts out of a module and puts its family's adapter in their place."""
    return ADAPTERS[site.streamed.bank.family](site)
