"""The experts of a single token: few calls, and the bits of the eager forward, by the fastest way.

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

from coterie.kernels.swiglu import ELEMENTWISE_GRAIN, Activation, swiglu_rows
from coterie.kernels.telling import Telling

Products = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
"""(rows [K, n], or [1, n] for all; K weights [m, n]) → [K, m]."""

_CACHED_BYTES = 1 << 20
"""Up to this many bytes of weights, copying them together for one call costs less than one call each."""

_COMPARED = 1024
"""Elements that are compared at the least ..."""

_LONGEST = 1 << 18
"""... unless their rows take this many: where so many products are added, few sums tell as much."""


class TokenKernel:
    """The experts of a single token: few calls, and the bits of the eager forward.

    Args:
        gate_up_shape: (2F, D).
        down_shape: (D, F).
        dtype: Of weights and activations.
    """

    def __init__(self, gate_up_shape: tuple[int, ...], down_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._gate_up_shape = gate_up_shape
        self._down_shape = down_shape
        self._dtype = dtype
        # By number of experts and by the settings on which rounding can depend.
        self._products: dict[tuple[int, int, str], tuple[Products, Products]] = {}
        # On the CPU, whatever the device that the skeleton is made on.
        self._zero_1D = torch.zeros(1, down_shape[0], dtype=dtype, device="cpu")

    def __call__(
        self,
        token_1D: torch.Tensor,
        gate_ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor],
        weights_K1: torch.Tensor,
        activation: Activation,
        order: Sequence[int],
        tell: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Computes the experts and adds them up in ``order``; returns [1, D].

        Args:
            token_1D: The token.
            gate_ups: K tensors [2F, D], in any order of experts.
            downs: K tensors [D, F], in the same order.
            weights_K1: Gate weights [K, 1] in the same order.
            activation: The class's activation function.
            order: Positions of the experts in ascending id.
            tell: Told what is added up: the weighted outputs [K, D], in the order of the experts.
        """
        if len(gate_ups) * self._down_shape[1] > ELEMENTWISE_GRAIN:
            rows = [swiglu_rows(token_1D, up, down, activation) for up, down in zip(gate_ups, downs, strict=True)]
            outputs_KD = torch.cat(rows)
        else:
            precision = torch.get_float32_matmul_precision() if self._dtype == torch.float32 else ""
            settings = (len(gate_ups), torch.get_num_threads(), precision)
            up, down = self._products.get(settings) or self._choose(settings)
            gate_KF, up_KF = up(token_1D, gate_ups).chunk(2, dim=-1)
            outputs_KD = down(activation(gate_KF) * up_KF, downs)
        weighted_KD = outputs_KD * weights_K1
        if weighted_KD.dtype != token_1D.dtype:
            weighted_KD = weighted_KD.to(token_1D.dtype)
        if tell is not None:
            tell(weighted_KD)
        weighted = weighted_KD.unbind(0)
        # From zero as in the eager forward, which makes a negative zero positive.
        result_1D = self._zero_1D + weighted[order[0]]
        for position in order[1:]:
            result_1D += weighted[position]
        return result_1D

    def _choose(self, settings: tuple[int, int, str]) -> tuple[Products, Products]:
        top_k = settings[0]
        chosen = self._products[settings] = (
            exact_products(self._gate_up_shape, top_k, self._dtype, shared_row=True),
            exact_products(self._down_shape, top_k, self._dtype, shared_row=False),
        )
        return chosen


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
