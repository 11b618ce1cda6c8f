"""SwiGLU experts over ``gate_up_proj`` [2F, D] and ``down_proj`` [D, F], rounding for rounding as transformers' eager.

The eager forward of most classes adds each expert's weighted rows to the output in ascending id, in the output's
dtype. In bf16 another order, or one sum in a wider dtype, changes more than half of the elements; so does
``index_add_`` with several rows for one token, which adds them in float32 first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from coterie.kernels.products import Products, exact_products

Activation = Callable[[torch.Tensor], torch.Tensor]

ELEMENTWISE_GRAIN = 32768
"""torch splits elementwise work over threads above this many elements; where it splits, the scalar tail of a
vectorised exponential moves, and with it the last bit."""


def swiglu_rows(
    rows_ND: torch.Tensor, gate_up_2FD: torch.Tensor, down_DF: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """One expert on N rows: ``(act(x Wg) * (x Wu)) Wd``; returns [N, D]."""
    gate_NF, up_NF = linear(rows_ND, gate_up_2FD).chunk(2, dim=-1)
    return linear(activation(gate_NF) * up_NF, down_DF)


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


class Accumulator:
    """Adds the experts' outputs in ascending id, whatever the order in which they become ready.

    Args:
        like_TD: The input; the result has its shape and dtype.
        experts: Ascending ids of the experts that will be added.
    """

    def __init__(self, like_TD: torch.Tensor, experts: Sequence[int]) -> None:
        self.result_TD = torch.zeros_like(like_TD)
        self._pending = iter(experts)
        self._next = next(self._pending, None)
        self._ready: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, expert: int, tokens_N: torch.Tensor, rows_ND: torch.Tensor) -> None:
        """Takes an expert's weighted rows; adds all that are next in order."""
        self._ready[expert] = (tokens_N, rows_ND)
        while self._next is not None and self._next in self._ready:
            tokens, rows = self._ready.pop(self._next)
            self.result_TD.index_add_(0, tokens, rows.to(self.result_TD.dtype))
            self._next = next(self._pending, None)
