"""Takes the experts out of a skeleton and connects what is left with a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from coterie.cache import ExpertCache
from coterie.errors import LoadError
from coterie.hf.banks import ExpertBank, find_banks
from coterie.hf.caches import let_go_of_kept
from coterie.hf.configs import check_architecture
from coterie.hf.last_logits import output_head
from coterie.integration.adapters import AdapterSite, adapt
from coterie.integration.grouped_attention import share_keys_and_values
from coterie.integration.linear import QuantisedLinears
from coterie.integration.missing import adapt_block
from coterie.kernels import StackedProduct, TokenKernel
from coterie.passes.admission import Admission
from coterie.passes.bank import StreamedBank
from coterie.passes.clock import StepClock
from coterie.passes.decoder import bank_decoders
from coterie.passes.forward_call import give_parameter
from coterie.passes.lookahead import LookAhead
from coterie.passes.order import LayerOrder
from coterie.spec import BankKey, ExpertSource, Missing, Observer, Prefetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Kernels = tuple[Callable[..., TokenKernel], Callable[..., StackedProduct]]


class Attachment:
    """The streamed banks of one model.

    Args:
        num_experts: Bank → how many experts the source says that it has, absent ones included.
        present: Bank → ids of the experts that are there.
        missing: Policy for absent experts, or None if there are none.
        experts_per_token: Overrides the routers' K.
        prefetch: When the next layer's experts are read before they are asked for.
        linears: The linear layers outside experts whose weights are in a scheme, or None.

    Attributes:
        banks: The banks, once the plug-in has run.
        clocks: Component → its forward passes.
        orders: Component → which of its banks follows which.
        ahead: Component → who predicts what comes next; none where nothing is prefetched.
        observers: Whoever is told about events.
        removed: Names of the parameters that were taken out.
        dense_shapes: Name → shape of the parameters that were left in.
        linears: Those given.
        missing: That given.
    """

    def __init__(
        self,
        *,
        num_experts: Mapping[BankKey, int],
        present: Mapping[BankKey, Collection[int]],
        missing: Missing | None = None,
        experts_per_token: int | None = None,
        prefetch: Prefetch = "off",
        linears: QuantisedLinears | None = None,
    ) -> None:
        self.linears = linears
        self.banks: dict[BankKey, StreamedBank] = {}
        self.clocks: dict[str, StepClock] = {}
        self.orders: dict[str, LayerOrder] = {}
        self.observers: list[Observer] = []
        self.removed: set[str] = set()
        self.dense_shapes: dict[str, torch.Size] = {}
        self._twins: dict[BankKey, list[StreamedBank]] = {}
        self._num_experts = num_experts
        self._present = present
        self.missing = missing
        self._experts_per_token = experts_per_token
        self._prefetch: Prefetch = prefetch
        self.ahead: dict[str, LookAhead] = {}

    def attach(self, model: PreTrainedModel) -> None:
        """Called by the plug-in on the skeleton, before any weight is read.

        Raises:
            LoadError: If the model's banks are not the source's.
            UnsupportedError: If there are no experts, or a router cannot be adapted.
        """
        banks = find_banks(model)
        check_architecture(model, len(banks))
        self._check_banks(type(model).__name__, {bank.key: bank.num_experts for bank in banks})
        if self.linears is not None:
            # Before the experts go: checkpoint names are resolved with the whole skeleton.
            self.linears.replace(model)
        # Layers of the same shape share one.
        kernels = (functools.cache(TokenKernel), functools.cache(StackedProduct))
        parts = {id(part): part for part in (model, *(_component_module(model, bank) for bank in banks))}
        for part in parts.values():
            give_parameter(part)
        for bank in banks:
            component = bank.key.component
            if component not in self.clocks:
                self.clocks[component] = StepClock(
                    component, self.observers, Admission(functools.partial(let_go_of_kept, model))
                )
                self.orders[component] = LayerOrder()
                part = _component_module(model, bank)
                makes_logits = output_head(part if component != "decoder" else model) is not None
                self.clocks[component].install(part, makes_logits=makes_logits)
                if self._prefetch != "off":
                    self.ahead[component] = LookAhead(self.clocks[component], self._prefetch)
            first, *twins = (self._stream(model, place, kernels) for place in (bank, *map(bank.at, bank.tied)))
            for twin in twins:
                twin.count_with(first)
            self.banks[bank.key], self._twins[bank.key] = first, twins
        share_keys_and_values(model)
        self.dense_shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        tied = getattr(model, "all_tied_weights_keys", None)
        if tied:
            for name in self.removed & set(tied):
                del tied[name]

    def _stream(self, model: PreTrainedModel, bank: ExpertBank, kernels: _Kernels) -> StreamedBank:
        policy = adapt_block(model, bank, self._present[bank.key], self.missing, self._experts_per_token)
        self.removed.update(name for names in bank.targets.values() for name in names)
        streamed = StreamedBank(bank, self.clocks[bank.key.component], policy)
        streamed.order = self.orders[bank.key.component]
        present = sorted(self._present[bank.key])
        streamed.order.add(bank.path, [streamed.keys[expert] for expert in present])
        block = model.get_submodule(bank.router_block)
        adapt(
            AdapterSite(
                streamed=streamed,
                module=model.get_submodule(bank.path),
                block=block,
                parent=model.get_submodule(bank.path.rpartition(".")[0]),
                token_kernel=kernels[0],
                stacked_product=kernels[1],
            )
        )
        ahead = self.ahead.get(bank.key.component)
        if ahead is not None:
            ahead.watch(streamed, block)
        return streamed

    def _check_banks(self, name: str, needed: Mapping[BankKey, int]) -> None:
        advice = "The configuration and the weights do not belong together."
        odd = sorted(set(self._num_experts) ^ set(needed))
        if odd:
            raise LoadError(
                f"{name} and the source have different banks of experts: {odd[0]} is only in one.",
                advice=advice,
                bank=str(odd[0]),
            )
        for key, count in needed.items():
            if count != self._num_experts[key]:
                raise LoadError(
                    f"{key} has {count} experts in {name}, the source has {self._num_experts[key]}.",
                    advice=advice,
                    bank=str(key),
                    expected=count,
                    got=self._num_experts[key],
                )

    def connect(self, cache: ExpertCache, source: ExpertSource) -> None:
        """Gives every bank the cache; checks that records make the parameters that the model needs.

        Raises:
            LoadError: If a record's fields are not the module's parameters.
        """
        decoders = bank_decoders({key: streamed.bank for key, streamed in self.banks.items()}, source)
        for key, streamed in self.banks.items():
            for module in (streamed, *self._twins[key]):
                module.connect(cache, decoders[key])
        for ahead in self.ahead.values():
            ahead.connect(cache)


def _component_module(model: PreTrainedModel, bank: ExpertBank) -> nn.Module:
    """The module whose forward passes are the component's: of a part that has its own, else the whole model."""
    segments = bank.path.split(".")
    part: nn.Module = model
    if bank.key.component in segments:
        part = model.get_submodule(".".join(segments[: segments.index(bank.key.component) + 1]))
    return part
