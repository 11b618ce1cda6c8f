"""Finds the banks of experts of a model: which modules, which parameters, which identity."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from coterie.hf.configs import component_of_class
from coterie.spec import BankKey, RecordLayout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_TOP_K_NAMES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
    "experts_per_token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBank:
    """One decorated experts module of a model.

    Attributes:
        key: Identity of the bank.
        path: Module path within the model, such as ``model.layers.0.mlp.experts``.
        num_experts: E.
        top_k: K as the configuration states it, or None.
        parameters: Name → shape without the expert dimension, of the stacked parameters, in module order.
        dtypes: Name → dtype of the parameter in the model.
        variant: What distinguishes the memory layout: ``""``, ``transposed``, ``interleaved``, or both.
    """

    key: BankKey
    path: str
    num_experts: int
    top_k: int | None
    parameters: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    variant: str

    def layout(self, dtypes: dict[str, str]) -> RecordLayout:
        """The record layout of this bank for given stored dtypes (safetensors' names, by parameter)."""
        name = "|".join(parameter.replace("_proj", "") for parameter in self.parameters)
        if self.variant:
            name = f"{name};{self.variant}"
        return RecordLayout.build(name, [(p, dtypes[p], shape) for p, shape in self.parameters.items()])


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


def find_banks(model: PreTrainedModel) -> list[ExpertBank]:
    """All banks of a model (on any device, also meta), in module order."""
    found: list[tuple[str, nn.Module, dict[str, torch.Tensor]]] = []
    for path, module in model.named_modules():
        if is_experts_module(module):
            stacked = stacked_parameters(module)
            if stacked:
                found.append((path, module, stacked))
    by_layer: dict[tuple[str, int], list[str]] = defaultdict(list)
    for path, _, _ in found:
        by_layer[_place(path, model)].append(path)
    banks = []
    for path, module, stacked in found:
        component, layer = _place(path, model)
        bank = "mlp" if len(by_layer[component, layer]) == 1 else _bank_name(path)
        banks.append(
            ExpertBank(
                key=BankKey(component, layer, bank),
                path=path,
                num_experts=next(iter(stacked.values())).shape[0],
                top_k=_top_k(getattr(module, "config", model.config)),
                parameters={name: tuple(p.shape[1:]) for name, p in stacked.items()},
                dtypes={name: p.dtype for name, p in stacked.items()},
                variant=_variant(module),
            )
        )
    return banks


def _place(path: str, model: PreTrainedModel) -> tuple[str, int]:
    segments = path.split(".")
    component = component_of_class(type(model), model.config)
    if segments[0] in ("thinker", "talker"):
        component = segments[0]
    elif getattr(model.config, "is_encoder_decoder", False):
        component = next((s for s in segments if s in ("encoder", "decoder")), component)
    layer = next((int(s) for s in segments if s.isdigit()), 0)
    return component, layer


def _bank_name(path: str) -> str:
    parts = [segment for segment in path.split(".")[:-1] if not segment.isdigit()]
    return parts[-1] if parts else "mlp"


def _top_k(config: PreTrainedConfig) -> int | None:
    for holder in (config, config.get_text_config()):
        for name in _TOP_K_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
            if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
                return int(value[0])
    return None


def _variant(module: nn.Module) -> str:
    names = []
    if getattr(module, "is_transposed", False):
        names.append("transposed")
    if not getattr(module, "is_concatenated", True):
        names.append("interleaved")
    return "+".join(names)
