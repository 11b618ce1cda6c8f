"""Linear layers: with the arithmetic of stock transformers, and with weights that are stored in a scheme.

For an input whose rows do not lie one after the other, torch chooses between one product over all rows and a batched
product by whether the *weight* wants gradients, even where none are computed; the two round differently in float32.
Stock parameters want gradients, those of a streamed model must not. ``generate`` meets this with every batch: the head
is given the last position of each row.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from coterie.quant import Scheme

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
