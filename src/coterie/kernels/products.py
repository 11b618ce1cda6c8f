"""Matrix–vector products of a single token with several experts: the same bits, by the fastest way.

Which library routine serves a product with one row, and what a call costs, depends on dtype, shape and processor. The
ways below all compute every product by itself; whether they also round alike is not for us to assume, so
:func:`exact_products` tries each on data of the very shape and takes the first that reproduces ``linear`` bit for bit.
A routine either adds in the same order, and then agrees on all data, or it does not. Of random data that would show in
one element of thousands, once sums are rounded to 16 bits; so the data are made to cancel (:class:`Telling`), and what
is left of each sum is nothing but the order of adding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

Products = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
"""(rows [K, n], or [1, n] for all; K weights [m, n]) → [K, m]."""

_CACHED_BYTES = 1 << 20
"""Up to this many bytes of weights, copying them together for one call costs less than one call each."""

_COMPARED = 1024
"""Elements that are compared at the least ..."""

_LONGEST = 1 << 18
"""... unless their rows take this many: where so many products are added, few sums tell as much."""


def by_linear(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``linear`` per expert: what transformers' eager forward calls."""
    if rows.shape[0] == 1:
        return torch.cat([linear(rows, weight) for weight in weights])
    return torch.cat([linear(row, weight) for row, weight in zip(torch.split(rows, 1), weights, strict=True)])


def by_vector(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``mv`` per expert: skips the set-up of a matrix product."""
    if rows.shape[0] == 1:
        row = rows.squeeze(0)
        return torch.stack([torch.mv(weight, row) for weight in weights])
    return torch.stack([torch.mv(weight, row) for row, weight in zip(rows.unbind(0), weights, strict=True)])


def by_batch(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One ``bmm`` over the weights copied together."""
    stacked = torch.stack(tuple(weights)).mT
    return torch.bmm(rows.unsqueeze(1).expand(len(weights), 1, rows.shape[1]), stacked).squeeze(1)


def by_columns(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One product over the weights copied together, with the rows as columns: nothing is transposed.

    Where all experts share a row it is a single ``mv``, else a ``bmm``.
    """
    if rows.shape[0] == 1:
        return torch.mv(torch.cat(tuple(weights)), rows.squeeze(0)).view(len(weights), -1)
    return torch.bmm(torch.stack(tuple(weights)), rows.unsqueeze(2)).squeeze(2)


def exact_products(weight_shape: tuple[int, ...], count: int, dtype: torch.dtype, *, shared_row: bool) -> Products:
    """The way that is expected to be fastest among those that round as ``linear`` does here.

    Args:
        weight_shape: (m, n) of one expert's weight.
        count: K, how many experts a token has.
        dtype: Of weights and rows.
        shared_row: Whether all experts multiply the same row.
    """
    ways: tuple[Products, ...] = (by_vector,)
    if count * weight_shape[0] * weight_shape[1] * dtype.itemsize <= _CACHED_BYTES:
        ways = (by_columns, by_batch, by_vector)
    telling = Telling(weight_shape, dtype)
    rounds = []
    for used in sorted({1, count}):
        weights = [telling.weights[i % 2] for i in range(used)]
        for _ in range(max(2, min(_COMPARED // (used * weight_shape[0]), _LONGEST // (used * weight_shape[1])))):
            rows = telling.rows(1 if shared_row else used)
            rounds.append((rows, weights, by_linear(rows, weights)))
    for way in ways:
        if all(torch.equal(way(rows, weights), expected) for rows, weights, expected in rounds):
            return way
    return by_linear


class Telling:
    """Rows and weights whose products have many magnitudes and cancel in pairs at random places.

    Args:
        weight_shape: (m, n).
        dtype: Of rows and weights.

    Attributes:
        weights: Two of shape [m, n].
    """

    def __init__(self, weight_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        width = weight_shape[1]
        self._here, self._there = torch.randperm(width, generator=self._generator)[: width // 2 * 2].view(2, -1)
        weight = torch.randn(weight_shape, generator=self._generator)
        weight[:, self._there] = -weight[:, self._here]
        first = weight.to(dtype)
        self.weights = (first, first.flip(0))

    def rows(self, count: int) -> torch.Tensor:
        """New rows [count, n]."""
        width = self.weights[0].shape[1]
        # Wide enough that most of a small product is lost beside a large one, and within the range of float16.
        scale = 2.0 ** torch.randint(-12, 13, (width,), generator=self._generator)
        rows = torch.randn(count, width, generator=self._generator)
        rows[:, self._here] *= scale[self._here]
        rows[:, self._there] = rows[:, self._here]
        return rows.to(self._dtype)
