"""Matrix–vector products of a single token with several experts: the same bits, by the fastest way.

Which library routine serves a product with one row, and what a call costs, depends on dtype, shape and processor. The
ways below all compute every product by itself; whether they also round alike is not for us to assume, so
:func:`exact_products` tries each on random data of the very shape and takes the first that reproduces ``linear`` bit
for bit. A routine either adds in the same order, and then agrees on all data, or it does not, and then disagrees on
some of the thousands of elements compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

Products = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
"""(rows [K, n], or [1, n] for all; K weights [m, n]) → [K, m]."""

_CACHED_BYTES = 1 << 20
"""Up to this many bytes of weights, copying them together for one call costs less than one call each."""

_TRIALS = 4


def by_linear(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``linear`` per expert: what transformers' eager forward calls."""
    if rows.shape[0] == 1:
        return torch.cat([linear(rows, weight) for weight in weights])
    return torch.cat([linear(row, weight) for row, weight in zip(torch.split(rows, 1), weights, strict=True)])


def by_vector(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``mv`` per expert: skips the set-up of a matrix product."""
    if rows.shape[0] == 1:
        row = rows[0]
        return torch.stack([torch.mv(weight, row) for weight in weights])
    return torch.stack([torch.mv(weight, row) for row, weight in zip(rows.unbind(0), weights, strict=True)])


def by_batch(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``bmm`` over the weights copied together."""
    stacked = torch.stack(tuple(weights)).transpose(1, 2)
    return torch.bmm(rows.unsqueeze(1).expand(len(weights), 1, rows.shape[1]), stacked).squeeze(1)


def exact_products(weight_shape: tuple[int, int], count: int, dtype: torch.dtype, *, shared_row: bool) -> Products:
    """The way that is expected to be fastest among those that round as ``linear`` does here.

    Args:
        weight_shape: (m, n) of one expert's weight.
        count: K, how many experts a token has.
        dtype: Of weights and rows.
        shared_row: Whether all experts multiply the same row.
    """
    ways: tuple[Products, ...] = (by_vector,)
    if count * weight_shape[0] * weight_shape[1] * dtype.itemsize <= _CACHED_BYTES:
        ways = (by_batch, by_vector)
    generator = torch.Generator().manual_seed(0)
    distinct = [torch.randn(weight_shape, generator=generator).to(dtype) for _ in range(2)]
    weights = [distinct[i % 2] for i in range(count)]
    rounds = []
    for _ in range(_TRIALS):
        rows = torch.randn(1 if shared_row else count, weight_shape[1], generator=generator).to(dtype)
        rounds.append((rows, by_linear(rows, weights)))
    for way in ways:
        if all(torch.equal(way(rows, weights), expected) for rows, expected in rounds):
            return way
    return by_linear
