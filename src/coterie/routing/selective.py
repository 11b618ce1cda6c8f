"""What all router adapters share: choosing among the available experts only.

An adapter is an instance of a subclass of the router's own class, because transformers matches routers by
``isinstance`` (output recorders, weight initialisation). It carries the original's parameters under the same names, so
it can replace the router before or after the weights are loaded. Shapes: T tokens, H hidden, E experts, K experts per
token.

**What masking means.** A router scores every expert and takes the K best. The score of an absent expert is excluded
*before* that choice, so the best available experts are taken, in order of score. Their weights are then formed as
the class forms them:

- If the class renormalises the chosen probabilities, the softmax runs over the available experts. Dividing by the sum
  of the chosen makes this equal to the softmax over all experts, and it stays finite when an absent expert had taken
  all the probability that float32 can express.
- If it does not, the softmax over all experts is left as it is: the mask changes which experts are chosen and never the
  probability of one of them. What absent experts would have got is then missing from the sum, as everything outside
  the top K always is in such a model.

With fewer than K available, all of them are used and the remaining slots hold the sentinel id E with weight 0 (never an
absent expert); with none, every slot is a sentinel and the layer's residual passes through. The router logits that
the adapter returns are the original ones, over all experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """How an adapter chooses.

    Attributes:
        top_k: K, slots per token in the output.
        used: Slots that hold an expert: the smaller of K and the number of available experts.
        num_experts: E.
        absent: bool [E] on the CPU, True where the expert must not be chosen; None if all may be.
    """

    top_k: int
    used: int
    num_experts: int
    absent: Tensor | None


class SelectiveRouter(nn.Module):
    """Base of the adapters; the family's forward is in the subclass, the parameters come from the original router.

    Attributes:
        selection: Kept as a plain attribute: a buffer would be emptied when transformers materialises a model that was
            built on the meta device, and would show up among the model's buffers.
        stock_class: The router class that is adapted.
        stock_top_k: The stock router's ``top_k``, or None if it has no such attribute.
        fixed_top_k: K where it is part of the class's arithmetic, else None.
    """

    fixed_top_k: ClassVar[int | None] = None

    selection: Selection
    stock_class: type[nn.Module]
    stock_top_k: int | None
    top_k: int
    hidden_dim: int
    weight: Tensor

    def exclude(self, scores: Tensor) -> Tensor:
        """The scores [T, E] with those of absent experts at minus infinity; the same object if none is absent."""
        if self.selection.absent is None:
            return scores
        return scores.masked_fill(self.selection.absent.to(scores.device), -torch.inf)

    def choose(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The best available experts of each token.

        Args:
            probabilities: [T, E].

        Returns:
            Their probabilities and int64 ids, both [T, used], best first.
        """
        values, index = torch.topk(self.exclude(probabilities), self.selection.used, dim=-1)
        return values, index

    def fill(self, weights: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Widens [T, used] weights and ids to [T, K] with weight 0 and the sentinel id E."""
        empty = self.selection.top_k - self.selection.used
        if empty == 0:
            return weights, index
        return pad(weights, (0, empty), value=0.0), pad(index, (0, empty), value=self.selection.num_experts)
