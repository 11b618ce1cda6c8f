"""Softmax routers that always renormalise the chosen probabilities and return weights in the logits' dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, softmax

from coterie.routing.selective import SelectiveRouter


class AlwaysNormRouter(SelectiveRouter):
    """Qwen3-VL-MoE, Qwen3.5-MoE and the talker-side text router of Qwen3-Omni."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routes tokens; step by step the computation of the stock classes, in the same dtypes.

        Args:
            hidden_states: [..., H].

        Returns:
            Router logits [T, E] (of all experts), weights [T, K] in the logits' dtype, ids int64 [T, K].
        """
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        logits_TE = linear(hidden_states, self.weight)
        weights, index = self.choose(softmax(self.exclude(logits_TE), dtype=torch.float, dim=-1))
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(logits_TE.dtype)
        weights, index = self.fill(weights, index)
        return logits_TE, weights, index
