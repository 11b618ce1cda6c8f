"""Experts that are modules of their own: the class's own forward, over linear layers that fetch their weights."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn
from torch.nn.functional import linear, one_hot

from coterie.cache import LeaseStats
from coterie.hf.experts import own_forward
from coterie.integration.adapters.adapter import AdapterSite
from coterie.integration.adapters.additions import seen_additions
from coterie.integration.standin import ExpertCursor, StackedStandIn, stand_in_for
from coterie.passes.contributions import Contributions
from coterie.passes.current import Pass
from coterie.passes.forwards import install


class StreamedLinear(nn.Module):
    """A linear layer of one expert, without parameters of its own.

    Args:
        cursor: Where the current expert is.
        expert: Whose layer it is.
        weight: What stands in for the weights of this layer of all experts.
        bias: The same for the biases, or None.
    """

    def __init__(
        self, cursor: ExpertCursor, expert: int, weight: StackedStandIn, bias: StackedStandIn | None = None
    ) -> None:
        super().__init__()
        self._cursor = cursor
        self._expert = expert
        self._weight = weight
        self._bias = bias

    @property
    def weight(self) -> torch.Tensor | StackedStandIn:
        """The weight, valid until the next expert is asked for; between forward passes only what stands in for it."""
        # transformers reads it to initialise what was not loaded, and leaves a stand-in alone.
        return self._weight[self._expert] if self._cursor.active else self._weight

    @property
    def bias(self) -> torch.Tensor | StackedStandIn | None:
        """The bias, likewise."""
        return self._bias[self._expert] if self._bias is not None and self._cursor.active else self._bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """What ``nn.Linear`` computes."""
        return linear(rows, self._weight[self._expert], None if self._bias is None else self._bias[self._expert])


class _ExpertModules:
    """What Switch Transformers and NLLB-MoE share: their forward visits experts in ascending id, and only those hit."""

    def __init__(self, site: AdapterSite) -> None:
        self._streamed = site.streamed
        self._module = site.module
        self._cursor = ExpertCursor()
        self._forward = own_forward(site.module)
        self._replace_layers()
        install(site.module, "experts", self.forward)

    def forward(self, hidden_TD: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _compute(
        self,
        now: Pass,
        experts: list[int],
        hidden_TD: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        index_TK: torch.Tensor,
        noted: Contributions | None,
    ) -> tuple[torch.Tensor, LeaseStats]:
        """The class's result for the arguments that it takes; ``index_TK`` has the ids that these stand for."""
        if not experts:
            return torch.zeros_like(hidden_TD), LeaseStats()
        with (
            seen_additions(noted, index_TK, self._streamed.bank.num_experts),
            self._streamed.lease(now, experts, ordered=True) as lease,
            self._cursor.over(self._streamed.decoded(lease)),
        ):
            self._streamed.look_ahead()
            result = self._forward(self._module, hidden_TD, chosen, weights)
            return result, lease.stats

    def _replace_layers(self) -> None:
        bank = self._streamed.bank
        layers: dict[str, dict[str, StackedStandIn]] = defaultdict(dict)
        for position, (field, targets) in enumerate(bank.targets.items()):
            # "path.expert_0.fc1.weight" is the parameter "weight" of the layer "fc1".
            layer, _, parameter = targets[0].removeprefix(f"{bank.path}.expert_0.").rpartition(".")
            layers[layer][parameter] = stand_in_for(bank, field, position, self._cursor)
        for number in range(bank.num_experts):
            expert = self._module.get_submodule(f"expert_{number}")
            for layer, parameters in layers.items():
                streamed = StreamedLinear(self._cursor, number, **parameters)
                streamed.__dict__["_is_hf_initialized"] = True
                expert.set_submodule(layer, streamed)
            # transformers initialises what lacks this mark.
            expert.__dict__["_is_hf_initialized"] = True
        self._module.__dict__["_is_hf_initialized"] = True


class SwitchExperts(_ExpertModules):
    """Switch Transformers: one expert per token, none for tokens beyond an expert's capacity.

    What the router hands over is a mask [T, 1, E]. Observers and policies see ids [T, 1], with E for a token that got
    no expert.
    """

    def forward(self, hidden_TD: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the class computes, [T, D], for a mask [T, 1, E] and weights [T, 1]."""
        count = self._streamed.bank.num_experts
        index_T1 = chosen.argmax(-1).masked_fill(chosen.sum(-1) == 0, count)
        now = self._streamed.now()
        routed = self._streamed.route(now, hidden_TD, index_T1, weights)
        noted = self._streamed.contributions(now, index_T1, routed.ids)
        if routed.ids is not index_T1:
            chosen = one_hot(routed.ids, count + 1)[..., :count]
        experts = self._streamed.experts_in(routed.ids)
        result, stats = self._compute(now, experts, hidden_TD, chosen, routed.weights, routed.ids, noted)
        self._streamed.served(now, stats, routed.absent, noted)
        return result


class NllbExperts(_ExpertModules):
    """NLLB-MoE, as transformers computes it.

    Its experts module is called with the router's mask of first choices [T, E] and probabilities [T, E], and takes the
    mask's zeros and ones for ids: every token goes to expert 1 with the probability of its first choice and to expert 0
    with all others. That is what is computed here, and what observers and policies see: E ids per token.
    """

    def forward(self, hidden_TD: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the class computes, [T, D], for a mask [T, E] and probabilities [T, E]."""
        now = self._streamed.now()
        routed = self._streamed.route(now, hidden_TD, chosen, weights)
        noted = self._streamed.contributions(now, chosen, routed.ids)
        index_TE, weights_TE = routed.ids, routed.weights
        experts = self._streamed.experts_in(index_TE)
        left_out_TE = index_TE >= self._streamed.bank.num_experts
        if experts and left_out_TE.any():
            # The class has no id for "none": an expert that is read anyway takes weight 0.
            index_TE = index_TE.masked_fill(left_out_TE, experts[0])
            weights_TE = weights_TE.masked_fill(left_out_TE, 0)
        result, stats = self._compute(now, experts, hidden_TD, index_TE, weights_TE, index_TE, noted)
        self._streamed.served(now, stats, routed.absent, noted)
        return result
