"""SwiGLU experts over ``gate_up_proj`` [2F, D] and ``down_proj`` [D, F], rounding for rounding as transformers' eager.

The eager forward of most classes adds each expert's weighted rows to the output in ascending id, in the output's
dtype. In bf16 another order, or one sum in a wider dtype, changes more than half of the elements; so does
``index_add_`` with several rows for one token, which adds them in float32 first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

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
