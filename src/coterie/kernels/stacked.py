"""One expert's product as it is within a batched product of all experts, without the others.

How ``bmm`` spreads work over threads, and with that the order of its sums, can depend on how many matrices it is given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from coterie.kernels.swiglu import ELEMENTWISE_GRAIN, Activation
from coterie.kernels.telling import Telling

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows [N, n], weight [n, m]) → [N, m]."""

_TRIED_BYTES = 1 << 28
"""Up to this many bytes of output, the whole batch is computed once to compare with."""


def alone(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A batch of one."""
    return torch.bmm(rows[None], weight[None])[0]


def in_pair(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A batch of twice the same: nothing is copied, and no product is spread over all threads."""
    return torch.bmm(rows.expand(2, *rows.shape), weight.expand(2, *weight.shape))[0]


def activate_rows(activation: Activation, rows_NF: torch.Tensor) -> torch.Tensor:
    """The activation of one expert's rows as it is within the rows of all experts.

    torch splits a large tensor among its threads, and where it splits changes the last bit. That of all experts is
    split between rows; so this one, which is smaller, must not be split within a row.
    """
    if rows_NF.numel() <= ELEMENTWISE_GRAIN or torch.get_num_threads() == 1:
        return activation(rows_NF)
    rows = max(1, ELEMENTWISE_GRAIN // rows_NF.shape[1])
    return torch.cat([activation(block) for block in torch.split(rows_NF, rows)])


class StackedProduct:
    """``bmm(rows [E, N, n], weights [E, n, m])[e]``, rounded alike, for one expert.

    Ways are tried on data of the very shape at the first use (as :func:`~coterie.kernels.token_kernel.exact_products`
    does), and the cheapest that gives the bits of the whole batch is kept for the number of rows and of threads.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._ways: dict[tuple[object, ...], Product] = {}

    def __call__(self, rows_Nn: torch.Tensor, weight_nm: torch.Tensor) -> torch.Tensor:
        """The product of one expert, [N, m]."""
        settings = (
            rows_Nn.shape[0],
            tuple(weight_nm.shape),
            weight_nm.dtype,
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
        )
        way = self._ways.get(settings)
        if way is None:
            way = self._ways[settings] = self._choose(rows_Nn.shape[0], weight_nm)
        return way(rows_Nn, weight_nm)

    def _choose(self, count: int, weight_nm: torch.Tensor) -> Product:
        if torch.get_num_threads() == 1:
            return alone
        width, height = weight_nm.shape
        if self._num_experts * count * max(width, height) * weight_nm.element_size() > _TRIED_BYTES:
            return in_pair
        telling = Telling((height, width), weight_nm.dtype)
        weight, rows = telling.weights[0].mT.contiguous(), telling.rows(count)
        expected = self._whole(rows, weight)
        return next((way for way in (alone, in_pair) if torch.equal(way(rows, weight), expected)), self._whole)

    def _whole(self, rows_Nn: torch.Tensor, weight_nm: torch.Tensor) -> torch.Tensor:
        count = self._num_experts
        return torch.bmm(rows_Nn.expand(count, *rows_Nn.shape), weight_nm.expand(count, *weight_nm.shape))[0]
