"""Linear layers: with the arithmetic of stock transformers, and with weights that are stored in a scheme.

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

from coterie.native import MOST_ROWS, PackedMatrix, library
from coterie.quant import Scheme, StoredMatrix

_VALUES = 2**22
"""Weights that are dequantised at once: enough rows for an efficient product, few enough to stay out of the budget."""


def stock_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``input @ weight.T + bias``, rounded as with a weight that wants gradients.

    Args:
        input: […, K].
        weight: [N, K].
        bias: [N], or None.

    Returns:
        […, N].
    """
    # Without a bias torch looks at strides that is_contiguous() passes over, those of dimensions with one entry.
    if _is_folded(input) if bias is None else input.dim() < 3 or input.is_contiguous():
        return linear(input, weight, bias)
    output: torch.Tensor = torch.mm(input.reshape(-1, input.shape[-1]), weight.t()).view(*input.shape[:-1], len(weight))
    return output if bias is None else output + bias


def _is_folded(input: torch.Tensor) -> bool:
    """Whether torch takes all rows as one matrix in any case; by strides, also those of dimensions with one entry."""
    strides, shape = input.stride(), input.shape
    if len(strides) == 3:
        return strides[0] == strides[1] * shape[1]
    return all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(len(strides) - 2))


def quantised_linear(
    input: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    scheme: Scheme,
    bias: torch.Tensor | None = None,
    *,
    values_at_once: int = _VALUES,
) -> torch.Tensor:
    """``input @ weight.T + bias`` with a weight that is stored in a scheme.

    The weight is dequantised to the input's dtype a few million values at a time. What fits into one such block gives
    the bits that :func:`stock_linear` gives with the rounded weight; of larger weights, sums may be rounded in another
    order.

    Args:
        input: […, K].
        codes: The first tensor that the scheme stores of a weight [N, K].
        scales: The second one.
        scheme: The scheme.
        bias: [N], or None.
        values_at_once: Weights to dequantise at once; at least one row is.

    Returns:
        […, N], in the input's dtype.
    """
    rows, columns = len(codes), input.shape[-1]
    step = max(1, values_at_once // columns)
    if rows <= step:
        return stock_linear(input, scheme.dequantise((codes, scales), columns, input.dtype), bias)
    output = torch.empty(*input.shape[:-1], rows, dtype=input.dtype)
    for first in range(0, rows, step):
        block = slice(first, min(first + step, rows))
        weight = scheme.dequantise((codes[block], scales[block]), columns, input.dtype)
        output[..., block] = stock_linear(input, weight, None if bias is None else bias[block])
    return output


class StockLinear(nn.Linear):
    """``nn.Linear`` with a weight that wants no gradients and the arithmetic of one that does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        # Every linear layer of every step comes here. Module.__getattr__, by which self.weight is found, costs more
        # than the check below does.
        parameters: dict[str, Any] = self._parameters
        try:
            return stock_linear(input, parameters["weight"], parameters["bias"])
        except KeyError:  # parametrised
            return stock_linear(input, self.weight, self.bias)


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is kept in a scheme.

    In bfloat16 the native library multiplies by the codes, where it was built and serves the shape; else the weight is
    dequantised a part at a time when it is computed with.

    Args:
        linear: The layer whose place it takes; its bias is taken over.
        matrix: How the weight is stored.

    Attributes:
        in_features: Inputs.
        out_features: Outputs.
        scheme: Scheme of the weight.
        dtype: Dtype that the weight stands for.
        codes: The weight's codes, once :meth:`fill` has been called.
        scales: Their scales.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    # transformers initialises what lacks this mark.
    _is_hf_initialized = True

    def __init__(self, linear: nn.Linear, matrix: StoredMatrix) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows_and_columns
        self.scheme: Scheme = matrix.scheme
        self.dtype = linear.weight.dtype
        self._packed: PackedMatrix | None = None
        self.register_parameter("bias", linear.bias)
        self.training = linear.training

    def fill(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Takes the weight; after loading, because transformers empties every buffer that is there before."""
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        native = library()
        if native is not None and PackedMatrix.served(native, self.scheme.name, self.in_features):
            self._packed = PackedMatrix(native, self.scheme.name, codes, scales)

    @property
    def packed(self) -> PackedMatrix | None:
        """The weight as the native library multiplies by it, where it does."""
        return self._packed

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight, dequantised anew each time: for the few classes that use it beside the layer's forward.

        Before :meth:`fill`, a tensor without content that transformers' initialisation passes over.
        """
        if "codes" not in self._buffers:
            empty = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")
            empty.__dict__["_is_hf_initialized"] = True
            return empty
        return self.scheme.dequantise((self.codes, self.scales), self.in_features, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        packed, bias = self._packed, self._parameters["bias"]
        if packed is not None and input.dtype is torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            # One token of each of a few sequences: none may see what the others are.
            rows = input.dim() == 3 and input.shape[1] == 1 and input.shape[0] <= MOST_ROWS
            output = packed(input.reshape(-1, self.in_features), rows=rows).view(*input.shape[:-1], self.out_features)
            return output if bias is None else output + bias
        buffers: dict[str, Any] = self._buffers
        return quantised_linear(input, buffers["codes"], buffers["scales"], self.scheme, bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        bias = self._parameters["bias"] is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, scheme={self.scheme.name}"
