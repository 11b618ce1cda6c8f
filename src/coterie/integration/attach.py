"""Takes the experts out of a skeleton and connects what is left with a cache."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import nn

from coterie.cache import ExpertCache
from coterie.errors import LoadError
from coterie.hf.banks import find_banks
from coterie.hf.configs import check_architecture
from coterie.hf.dtypes import TORCH_DTYPES
from coterie.integration.bank import StreamedBank
from coterie.integration.clock import StepClock
from coterie.integration.missing import Missing, adapt_block
from coterie.kernels import TokenKernel
from coterie.spec import BankKey, ExpertSource, Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Attachment:
    """The streamed banks of one model.

    Args:
        num_experts: Bank → how many experts the source says that it has, absent ones included.
        present: Bank → ids of the experts that are there.
        missing: Policy for absent experts, or None if there are none.
        experts_per_token: Overrides the routers' K.

    Attributes:
        banks: The banks, once the plug-in has run.
        clocks: Component → its forward passes.
        observers: Whoever is told about events.
        removed: Names of the parameters that were taken out.
    """

    def __init__(
        self,
        *,
        num_experts: Mapping[BankKey, int],
        present: Mapping[BankKey, Collection[int]],
        missing: Missing | None = None,
        experts_per_token: int | None = None,
    ) -> None:
        self.banks: dict[BankKey, StreamedBank] = {}
        self.clocks: dict[str, StepClock] = {}
        self.observers: list[Observer] = []
        self.removed: set[str] = set()
        self._num_experts = num_experts
        self._present = present
        self._missing = missing
        self._experts_per_token = experts_per_token

    def attach(self, model: PreTrainedModel) -> None:
        """Called by the plug-in on the skeleton, before any weight is read.

        Raises:
            LoadError: If the model's banks are not the source's.
            UnsupportedError: If there are no experts, or a router cannot be adapted.
        """
        banks = find_banks(model)
        check_architecture(model, len(banks))
        self._check_banks(type(model).__name__, {bank.key: bank.num_experts for bank in banks})
        # Layers of the same shape share one.
        token_kernel = functools.cache(TokenKernel)
        for bank in banks:
            component = bank.key.component
            if component not in self.clocks:
                self.clocks[component] = StepClock(component, self.observers)
                self.clocks[component].install(_component_module(model, component))
            policy = adapt_block(model, bank, self._present[bank.key], self._missing, self._experts_per_token)
            module = model.get_submodule(bank.path)
            self.banks[bank.key] = StreamedBank(bank, module, self.clocks[component], policy, token_kernel)
            self.removed.update(name for names in bank.targets.values() for name in names)
        tied = getattr(model, "all_tied_weights_keys", None)
        if tied:
            for name in self.removed & set(tied):
                del tied[name]

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
        """Gives every bank the cache; checks that records have the shapes that the model needs.

        Raises:
            LoadError: If a record's fields are not the module's parameters.
        """
        present = source.keys()
        sample = {key.bank_key: key for key in present}
        for key, streamed in self.banks.items():
            if key not in sample:
                streamed.connect(cache, None)
                continue
            fields = source.layout(sample[key]).fields
            got = {field.name: field.shape for field in fields}
            if list(got.items()) != list(streamed.bank.parameters.items()):
                raise LoadError(
                    f"The experts of {key} have fields {got}, the model needs {streamed.bank.parameters}.",
                    advice="The configuration and the weights do not belong together.",
                    bank=str(key),
                    expected=streamed.bank.parameters,
                    got=got,
                )
            streamed.connect(cache, tuple(TORCH_DTYPES[field.dtype] for field in fields))


def _component_module(model: PreTrainedModel, component: str) -> nn.Module:
    child = getattr(model, component, None) if component in ("thinker", "talker") else None
    return child if isinstance(child, nn.Module) else model
