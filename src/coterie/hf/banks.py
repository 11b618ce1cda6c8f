"""Finds the banks of experts of a model: which modules, which parameters, which identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.hf.configs import component_of_class
from coterie.hf.families import DECORATED, OUT_OF_SCOPE, Arrangement, arrangement_of
from coterie.hf.families.arrangement import Holding
from coterie.hf.families.modules import NLLB, SWITCH
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
    """One experts module of a model.

    Attributes:
        key: Identity of the bank.
        path: Module path within the model, such as ``model.layers.0.mlp.experts``.
        num_experts: E.
        top_k: K as the configuration states it, or None.
        parameters: Name → shape for one expert, of the fields of a record, in order.
        dtypes: Name → dtype of the field in the model.
        variant: What distinguishes the memory layout: ``""``, ``transposed``, ``interleaved``, or both.
        family: Which classes hold and compute their experts alike.
        holding: How the model's parameters hold a field of all experts.
        targets: Name → full names of the model's parameters that hold the field: one, or one per expert.
        router_block: Path of the module that has the router.
        identities: How many ids from E on are experts without weights, which give back what they get.
        tied: Paths of further modules that have the same experts.
    """

    key: BankKey
    path: str
    num_experts: int
    top_k: int | None
    parameters: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    variant: str
    family: str = DECORATED
    holding: Holding = "stacked"
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    router_block: str = ""
    identities: int = 0
    tied: tuple[str, ...] = ()

    @property
    def choices(self) -> int | None:
        """Ids per token that the experts module is given, K; None if the configuration does not say."""
        # NLLB-MoE's is given a column for every expert, see its adapter.
        return {NLLB.name: self.num_experts, SWITCH.name: 1}.get(self.family, self.top_k)

    def at(self, path: str) -> ExpertBank:
        """The same experts as another module, one of ``tied``, holds them."""

        def moved(name: str) -> str:
            return path + name.removeprefix(self.path)

        return replace(
            self,
            path=path,
            targets={name: tuple(map(moved, full)) for name, full in self.targets.items()},
            router_block=path if self.router_block == self.path else path.rpartition(".")[0],
            tied=(),
        )

    def schemed_layout(self, fields: Iterable[tuple[str, str, tuple[int, ...]]], scheme: str) -> RecordLayout:
        """The record layout of this bank in a scheme.

        Args:
            fields: Name, dtype and shape of the fields, in order.
            scheme: That of the record.
        """
        short = "|".join(name.replace("_proj", "") for name in self.parameters)
        return RecordLayout.build(";".join(filter(None, (short, self.variant, scheme))), fields)

    def layout(self, dtypes: dict[str, str]) -> RecordLayout:
        """The record layout of this bank for given stored dtypes (safetensors' names, by parameter)."""
        name = "|".join(parameter.replace("_proj", "") for parameter in self.parameters)
        if self.variant:
            name = f"{name};{self.variant}"
        return RecordLayout.build(name, [(p, dtypes[p], shape) for p, shape in self.parameters.items()])


def find_banks(model: PreTrainedModel) -> list[ExpertBank]:
    """All banks of a model (on any device, also meta), in module order.

    Raises:
        UnsupportedError: If the experts of the model's class are out of scope.
    """
    found: list[tuple[str, nn.Module, Arrangement]] = []
    for path, module in model.named_modules():
        _refuse(model, module)
        arrangement = arrangement_of(module)
        if arrangement is not None:
            found.append((path, module, arrangement))
    twins = _tied_modules(model, [path for path, _, _ in found])
    found = [place for place in found if place[0] not in twins]
    by_layer: dict[tuple[str, int], list[str]] = defaultdict(list)
    for path, _, _ in found:
        by_layer[_place(path, model)].append(path)
    banks = []
    for path, module, arrangement in found:
        component, layer = _place(path, model)
        alone = len(by_layer[component, layer]) == 1
        bank = arrangement.bank or ("mlp" if alone else _bank_name(path))
        fields = arrangement.fields
        banks.append(
            ExpertBank(
                key=BankKey(component, layer, bank),
                path=path,
                num_experts=arrangement.num_experts,
                top_k=_top_k(getattr(module, "config", model.config)),
                parameters={name: place.shape for name, place in fields.items()},
                dtypes={name: place.dtype for name, place in fields.items()},
                variant=_variant(module),
                family=arrangement.family,
                holding=arrangement.holding,
                targets={name: tuple(f"{path}.{n}" for n in place.names) for name, place in fields.items()},
                router_block=path if arrangement.has_router else path.rpartition(".")[0],
                identities=arrangement.identities,
                tied=tuple(twin for twin, other in twins.items() if other == path),
            )
        )
        _check_choices(banks[-1])
    return banks


def _check_choices(bank: ExpertBank) -> None:
    """Routers choose among the experts that there are, and at least one."""
    experts = bank.num_experts + bank.identities
    if bank.top_k is not None and not 1 <= bank.top_k <= experts:
        raise UnsupportedError(
            f"config.json asks for {bank.top_k} experts per token of the {experts} in {bank.path}.",
            advice="Correct the number of experts per token, such as num_experts_per_tok.",
            bank=str(bank.key),
            expected=experts,
            got=bank.top_k,
        )


def _tied_modules(model: PreTrainedModel, paths: list[str]) -> dict[str, str]:
    """Path of a module whose experts are those of another module → path of that other."""
    known = set(paths)
    pairs = getattr(model, "all_tied_weights_keys", None) or {}
    modules = ((name.rpartition(".")[0], other.rpartition(".")[0]) for name, other in pairs.items())
    return {name: other for name, other in modules if name in known and other in known}


def _refuse(model: PreTrainedModel, module: nn.Module) -> None:
    reason = OUT_OF_SCOPE.get(type(module).__name__)
    if reason is not None:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be streamed: {reason}.",
            advice="Use transformers itself for it.",
            architecture=type(model).__name__,
            experts_class=type(module).__name__,
        )


def _place(path: str, model: PreTrainedModel) -> tuple[str, int]:
    segments = path.split(".")
    component = component_of_class(type(model), model.config)
    if segments[0] in ("thinker", "talker"):
        component = segments[0]
    elif getattr(model.config, "is_encoder_decoder", False):
        component = next((s for s in segments if s in ("encoder", "decoder")), component)
    else:
        component = _tower(segments) or component
    layer = next((int(s) for s in segments if s.isdigit()), 0)
    return component, layer


def _tower(segments: list[str]) -> str | None:
    """``vision`` or ``audio`` for the layers of a part that sees or hears, which are counted from 0 too."""
    for segment in segments:
        if segment.isdigit():
            return None
        if segment.startswith(("vision", "visual")):
            return "vision"
        if segment.startswith("audio"):
            return "audio"
    return None


def _bank_name(path: str) -> str:
    parts = [segment for segment in path.split(".")[:-1] if not segment.isdigit()]
    return parts[-1] if parts else "mlp"


def _top_k(config: PreTrainedConfig) -> int | None:
    for holder in (config, config.get_text_config(), getattr(config, "ffn_config", None)):
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
