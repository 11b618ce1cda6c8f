"""Llama 4: the class multiplies every token with every expert and scales what is not routed to zero.

Its block repeats the tokens for all E experts, scales each copy with the router's score (0 where the expert is not
chosen), multiplies the copies in two batched products and adds them up. An expert that no token chose multiplies
nothing but zeros and adds nothing; so it is left out here, and with it the E copies of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from coterie.cache import LeaseStats
from coterie.integration.adapters.adapter import AdapterSite
from coterie.integration.standin import ExpertCursor, stand_in
from coterie.kernels import activate_rows
from coterie.passes.contributions import Contributions
from coterie.passes.current import Pass
from coterie.passes.forwards import install
from coterie.routing import SelectiveRouter

_EXACT_ADDENDS = 2
"""Up to so many outputs per token can be added in any order with the same rounding as in one sum."""


class Llama4Block:
    """The forward of a block of Llama 4: router, experts and shared expert.

    Every routed expert multiplies all tokens, zeros included, as the class does: the number of rows of a product can
    change its rounding.

    Args:
        site: Where to work.
    """

    def __init__(self, site: AdapterSite) -> None:
        bank = site.streamed.bank
        self._streamed = site.streamed
        self._block = site.block
        self._act_fn = cast(Callable[[torch.Tensor], torch.Tensor], site.module.act_fn)
        self._product = site.stacked_product(bank.num_experts)
        stand_in(site.module, bank, ExpertCursor())
        install(site.block, "experts", self.forward)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output [T, D] and the router's logits [T, E], for any [..., D]."""
        hidden_TD = hidden.reshape(-1, hidden.shape[-1])
        router = self._block.get_submodule("router")
        scores_TE, logits_TE = router(hidden_TD)
        # As the router chose: its scores alone do not tell a chosen expert whose score is rounded to zero.
        choices_TE = router.exclude(logits_TE) if isinstance(router, SelectiveRouter) else logits_TE
        index_TK = torch.topk(choices_TE, cast(int, router.top_k), dim=1).indices
        now = self._streamed.now()
        routed = self._streamed.route(now, hidden_TD, index_TK, scores_TE.gather(1, index_TK))
        if routed.ids is not index_TK:
            scores_TE = _scattered(routed.ids, routed.weights, scores_TE)
        noted = self._streamed.contributions(now, index_TK, routed.ids)
        summed_TD, stats = self._compute(now, hidden_TD, routed.ids, scores_TE, noted)
        output_TD = self._block.get_submodule("shared_expert")(hidden_TD)
        output_TD.add_(summed_TD)
        self._streamed.served(now, stats, routed.absent, noted)
        return output_TD, logits_TE

    def _compute(
        self,
        now: Pass,
        hidden_TD: torch.Tensor,
        index_TK: torch.Tensor,
        scores_TE: torch.Tensor,
        noted: Contributions | None,
    ) -> tuple[torch.Tensor, LeaseStats]:
        count = self._streamed.bank.num_experts
        experts = self._streamed.experts_in(index_TK)
        if not experts:
            return torch.zeros_like(hidden_TD), LeaseStats()
        few = index_TK.shape[1] <= _EXACT_ADDENDS
        sums = torch.zeros_like(hidden_TD) if few else hidden_TD.new_zeros(count, *hidden_TD.shape)
        with self._streamed.lease(now, experts, ordered=True) as lease:
            self._streamed.look_ahead()
            for key, (gate_up, down) in self._streamed.decoded(lease):
                rows_TD = hidden_TD * scores_TE[:, key.expert, None]
                gate_TF, up_TF = self._product(rows_TD, gate_up).chunk(2, dim=-1)
                outputs_TD = self._product(up_TF * activate_rows(self._act_fn, gate_TF), down)
                (sums if few else sums[key.expert]).add_(outputs_TD)
                if noted is not None:
                    tokens_N, slots_N = torch.where(index_TK == key.expert)
                    noted.add(tokens_N, slots_N, outputs_TD[tokens_N])
            return (sums if few else sums.sum(dim=0)), lease.stats


def _scattered(index_TK: torch.Tensor, weights_TK: torch.Tensor, scores_TE: torch.Tensor) -> torch.Tensor:
    """Scores [T, E] of other choices than the router's; what is left out (id E) has none."""
    padded = scores_TE.new_zeros(scores_TE.shape[0], scores_TE.shape[1] + 1)
    return padded.scatter_add_(1, index_TK, weights_TK.to(scores_TE.dtype))[:, :-1]
