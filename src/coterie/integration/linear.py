"""Puts linear layers outside experts in place: those that round as stock transformers do, and those in a scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from coterie.errors import LoadError
from coterie.hf.keymap import plain_targets
from coterie.kernels import QuantisedLinear, StockLinear
from coterie.passes.forwards import change_class
from coterie.quant import Scheme, StoredMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ReadParts = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Reads the codes and scales of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedWeight:
    """The weight of a linear layer that a source has in a scheme.

    Attributes:
        scheme: The scheme.
        facts: Dtypes and shapes of its codes and its scales.
        read: Reads both.
    """

    scheme: Scheme
    facts: tuple[tuple[str, tuple[int, ...]], ...]
    read: ReadParts


class QuantisedLinears:
    """The linear layers of a model whose weights a source has in schemes.

    Args:
        weights: By checkpoint name.
        component: The component that the model is of a larger checkpoint, or None.
    """

    def __init__(self, weights: Mapping[str, EncodedWeight], component: str | None = None) -> None:
        self._weights = weights
        self._component = component
        self._modules: dict[str, QuantisedLinear] = {}

    def replace(self, model: PreTrainedModel) -> None:
        """Puts layers without weights in the place of the skeleton's, before anything is loaded.

        Raises:
            LoadError: If a weight is that of no linear layer, or of one of another shape.
        """
        targets = plain_targets(model, self._weights, component=self._component)
        modules = dict(model.named_modules())
        for name, weight in self._weights.items():
            path, _, parameter = targets.get(name, "").rpartition(".")
            module = modules.get(path)
            if type(module) is not nn.Linear or parameter != "weight":
                raise LoadError(
                    f"{name!r} is stored in {weight.scheme.name}, but in {type(model).__name__} it is not the weight "
                    "of a plain linear layer.",
                    advice="Another release of transformers may have built the model otherwise; extract it again.",
                    tensor=name,
                )
            outputs, inputs = module.weight.shape
            matrix = StoredMatrix(parameter=name, shape=(outputs, inputs), scheme=weight.scheme, transposed=False)
            expected = tuple((dtype, shape) for _, dtype, shape in matrix.fields())
            if weight.facts != expected:
                raise LoadError(
                    f"{name!r} is stored as {weight.facts}, a layer of {outputs} × {inputs} needs {expected}.",
                    advice="config.json and the weights do not belong together.",
                    tensor=name,
                    expected=expected,
                    got=weight.facts,
                )
            self._modules[name] = QuantisedLinear(module, matrix)
            model.set_submodule(path, self._modules[name])

    def fill(self) -> None:
        """Reads every weight into its layer, after everything else is loaded."""
        for name, module in self._modules.items():
            module.fill(*self._weights[name].read())


def round_as_stock(model: nn.Module) -> None:
    """Makes every plain linear layer of this model a :class:`StockLinear`; its weights, name and hooks stay."""
    for module in model.modules():
        # Only what computes by nn.Linear's own forward: subclasses, and instances with a stranger's forward, stay.
        if type(module) is nn.Linear:
            change_class(module, StockLinear)
