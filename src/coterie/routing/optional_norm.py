"""Softmax routers that renormalise the chosen probabilities if ``norm_topk_prob`` says so."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, softmax

from coterie.routing.selective import SelectiveRouter


class OptionalNormRouter(SelectiveRouter):
    """Qwen2-MoE, Qwen3-MoE, Qwen3-Next, Qwen3-Omni thinker and talker, OLMoE and others of this shape."""

    norm_topk_prob: bool

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routes tokens; step by step the computation of the stock classes, in the same dtypes.

        Args:
            hidden_states: [..., H].

        Returns:
            Router logits [T, E] (of all experts), weights [T, K] in the logits' dtype, ids int64 [T, K].
        """
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        logits_TE = linear(hidden_states, self.weight)
        scored_TE = self.exclude(logits_TE) if self.norm_topk_prob else logits_TE
        weights, index = self.choose(softmax(scored_TE, dtype=torch.float, dim=-1))
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights, index = self.fill(weights.to(logits_TE.dtype), index)
        return logits_TE, weights, index
