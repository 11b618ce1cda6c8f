"""Softmax routers that always renormalise and return weights in float32, whatever the model's dtype."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, softmax

from coterie.routing.selective import SelectiveRouter


class MixtralRouter(SelectiveRouter):
    """Mixtral and MiniMax."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routes tokens; step by step the computation of the stock classes, in the same dtypes.

        Args:
            hidden_states: [..., H].

        Returns:
            Router logits [T, E] (of all experts), float32 weights [T, K], ids int64 [T, K].
        """
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        logits_TE = linear(hidden_states, self.weight)
        weights, index = self.choose(softmax(self.exclude(logits_TE).float(), dim=-1))
        weights, index = self.fill(weights / weights.sum(dim=-1, keepdim=True), index)
        return logits_TE, weights, index
