"""Linear layers that round as those of stock transformers do.

For an input whose rows do not lie one after the other, torch chooses between one product over all rows and a batched
product by whether the *weight* wants gradients, even where none are computed; the two round differently in float32.
Stock parameters want gradients, those of a streamed model must not. ``generate`` meets this with every batch: the head
is given the last position of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


class StockLinear(nn.Linear):
    """``nn.Linear`` with a weight that wants no gradients and the arithmetic of one that does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        # Every linear layer of every step comes here. Module.__getattr__, by which self.weight is found, costs more
        # than the check below does.
        parameters: dict[str, Any] = self._parameters
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # parametrised
            weight, bias = self.weight, self.bias
        # Without a bias torch looks at strides that is_contiguous() passes over, those of dimensions with one entry.
        if _is_folded(input) if bias is None else input.dim() < 3 or input.is_contiguous():
            return linear(input, weight, bias)
        output: torch.Tensor = torch.mm(input.reshape(-1, self.in_features), weight.t()).view(*input.shape[:-1], -1)
        return output if bias is None else output + bias


def _is_folded(input: torch.Tensor) -> bool:
    """Whether torch takes all rows as one matrix in any case; by strides, also those of dimensions with one entry."""
    strides, shape = input.stride(), input.shape
    if len(strides) == 3:
        return strides[0] == strides[1] * shape[1]
    return all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(len(strides) - 2))


def round_as_stock(model: nn.Module) -> None:
    """Makes every plain linear layer of this model a :class:`StockLinear`; its weights, name and hooks stay."""
    for module in model.modules():
        # Only what computes by nn.Linear's own forward: subclasses, and instances with a forward of theirs, stay.
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            module.__class__ = StockLinear
