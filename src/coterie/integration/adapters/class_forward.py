"""The class's own forward, over stand-ins that fetch the expert they are indexed with.

Right for every class that walks the experts in ascending id, visits only those that tokens are routed to, and indexes
its parameters with the id.
"""

from __future__ import annotations

import torch

from coterie.cache import LeaseStats
from coterie.hf.experts import own_forward
from coterie.integration.adapters.adapter import AdapterSite
from coterie.integration.adapters.additions import seen_additions
from coterie.integration.standin import ExpertCursor, stand_in
from coterie.passes.contributions import Contributions
from coterie.passes.current import Pass
from coterie.passes.forwards import install


class ClassForward:
    """Step-3.7, LongCat-Flash, DBRX, and the decorated classes whose arithmetic is their own.

    Args:
        site: Where to work.
    """

    def __init__(self, site: AdapterSite) -> None:
        self._streamed = site.streamed
        self._module = site.module
        self._cursor = ExpertCursor()
        self._forward = own_forward(site.module)
        stand_in(site.module, site.streamed.bank, self._cursor)
        install(site.module, "experts", self.forward)

    def forward(self, hidden: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """What the class computes; of the input's shape."""
        now = self._streamed.now()
        routed = self._streamed.route(now, hidden, index_TK, weights_TK)
        noted = self._streamed.contributions(now, index_TK, routed.ids)
        result, stats = self.compute(now, hidden, routed.ids, routed.weights, noted)
        self._streamed.served(now, stats, routed.absent, noted)
        return result

    def compute(
        self,
        now: Pass,
        hidden: torch.Tensor,
        index_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        noted: Contributions | None = None,
    ) -> tuple[torch.Tensor, LeaseStats]:
        """The same after routing; notes what experts add."""
        bank = self._streamed.bank
        end = bank.num_experts + bank.identities
        chosen = sorted({e for row in index_TK.tolist() for e in row if e < end})
        if not chosen:
            return torch.zeros_like(hidden), LeaseStats()
        left_out_TK = index_TK >= end
        if left_out_TK.any():
            # Not every release's eager forward knows the sentinel: an expert that is read anyway takes weight 0.
            index_TK = index_TK.masked_fill(left_out_TK, chosen[0])
            weights_TK = weights_TK.masked_fill(left_out_TK, 0)
        experts = [e for e in chosen if e < bank.num_experts]
        with seen_additions(noted, index_TK, end):
            if not experts:  # experts without weights are all that was chosen
                return self._forward(self._module, hidden, index_TK, weights_TK), LeaseStats()
            with (
                self._streamed.lease(now, experts, ordered=True) as lease,
                self._cursor.over(self._streamed.decoded(lease)),
            ):
                self._streamed.look_ahead()
                result = self._forward(self._module, hidden, index_TK, weights_TK)
                return result, lease.stats
