"""Phi-3.5-MoE: two experts, one after the other, each weighted by a softmax over the experts close to it.

The sparse mixer of https://arxiv.org/abs/2409.12136. An expert that scores far below the best takes no part in the
softmax, so the weights do not sum to one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from coterie.routing.selective import SelectiveRouter


class SparseMixerRouter(SelectiveRouter):
    """Phi-3.5-MoE; the mixer's arithmetic is the function of its module."""

    router_jitter_noise: float
    bias: Tensor | None
    fixed_top_k: ClassVar[int | None] = 2

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routes tokens.

        Args:
            hidden_states: [T, H].

        Returns:
            Router logits [T, E] (of all experts), weights [T, 2] in the logits' dtype, ids int64 [T, 2].
        """
        logits_TE = linear(hidden_states, self.weight, self.bias)
        weights, index = self._mixer(
            self.exclude(logits_TE), jitter_eps=self.router_jitter_noise, training=False, top_k=self.selection.top_k
        )
        if self.selection.used < self.selection.top_k:
            # The mixer always gives two; where fewer are available it falls back on any.
            empty = torch.arange(self.selection.top_k, device=index.device) >= self.selection.used
            weights = weights.masked_fill(empty, 0.0)
            index = index.masked_fill(empty, self.selection.num_experts)
        return logits_TE, weights, index

    @property
    def _mixer(self) -> Callable[..., tuple[Tensor, Tensor]]:
        mixer: Callable[..., tuple[Tensor, Tensor]] = sys.modules[self.stock_class.__module__].sparsemixer
        return mixer
