"""JetMoE: two projections per expert, with an activation or a whole attention between them.

The class groups tokens by expert, multiplies each group, and goes on with the groups together. What lies between the
projections is computed on all groups at once, so each projection asks for the experts by itself: they are leased twice
per forward pass, and where not all fit in memory they are read twice.
"""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import cast

import torch
from torch.nn.functional import linear, pad

from coterie.cache import LeaseStats
from coterie.integration.adapters.adapter import AdapterSite
from coterie.integration.standin import ExpertCursor, stand_in
from coterie.passes.contributions import Contributions
from coterie.passes.forwards import install
from coterie.routing import SelectiveRouter

Grouped = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int], torch.Tensor]
"""What JetMoE's router gives: order of the T · K pairs by expert [T · K], their tokens [T · K], their weights [T · K],
how many pairs each of the E experts has, and the logits [T, E]."""


class _Pending:
    """What the first projection of a forward pass left to tell."""

    absent = 0
    stats = LeaseStats()
    noted: Contributions | None = None
    order_N = torch.empty(0, dtype=torch.int64, device="cpu")
    weights_N = torch.empty(0, device="cpu")


class JetMoeExperts:
    """The experts of JetMoE's feed-forward or attention.

    Pairs that a policy leaves out come after all groups and count for no expert; their projections are zero.

    Args:
        site: Where to work.
    """

    def __init__(self, site: AdapterSite) -> None:
        self._streamed = site.streamed
        stand_in(site.module, site.streamed.bank, ExpertCursor())
        router = site.module.get_submodule("router")
        # The attention keeps heads for K experts per token, whatever its config says by now.
        self._top_k = router.selection.top_k if isinstance(router, SelectiveRouter) else cast(int, router.top_k)
        for module in (site.module, site.parent):
            if hasattr(module, "top_k"):
                module.__dict__["top_k"] = self._top_k
        self._route_stock = router.forward
        install(router, "experts", self.route)
        for position, name in enumerate(site.streamed.bank.parameters):
            install(site.module.get_submodule(name), "experts", functools.partial(self._project, position))

    def route(self, hidden_TD: torch.Tensor) -> Grouped:
        """What the router gives, after policies."""
        grouped: Grouped = self._route_stock(hidden_TD)
        order_N, _, weights_N, sizes, logits_TE = grouped
        shape = (hidden_TD.shape[0], order_N.numel() // hidden_TD.shape[0])
        experts_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        index_TK = torch.empty_like(order_N).scatter_(0, order_N, experts_N).view(shape)
        weights_TK = torch.empty_like(weights_N).scatter_(0, order_N, weights_N).view(shape)
        empty = self._top_k - shape[1]
        if empty:  # fewer than K experts are available
            index_TK = pad(index_TK, (0, empty), value=len(sizes))
            weights_TK = pad(weights_TK, (0, empty), value=0.0)
        now = self._streamed.now()
        routed = self._streamed.route(now, hidden_TD, index_TK, weights_TK)
        if routed.ids is not index_TK or empty:
            grouped = _group(routed.ids, routed.weights, len(sizes), logits_TE)
        pending = now.state(self, _Pending)
        pending.absent, pending.order_N, pending.weights_N = routed.absent, grouped[0], grouped[2]
        pending.noted = self._streamed.contributions(now, index_TK, routed.ids)
        return grouped

    def _project(self, position: int, inputs_ND: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """One projection of every pair, [N, F]; the field at ``position`` is the weight."""
        out_features, _ = list(self._streamed.bank.parameters.values())[position]
        groups = torch.split(inputs_ND, [*sizes, inputs_ND.shape[0] - sum(sizes)])
        outputs = []
        experts = [e for e, size in enumerate(sizes) if size]
        now = self._streamed.now()
        with self._streamed.lease(now, experts, ordered=True) as lease:
            if position:  # what comes after the first projection is the second one
                self._streamed.look_ahead()
            for key, parameters in self._streamed.decoded(lease):
                outputs.append(linear(groups[key.expert], parameters[position]))
            stats = lease.stats
        outputs.append(inputs_ND.new_zeros(groups[-1].shape[0], out_features))
        outputs_ND, pending = torch.cat(outputs), now.state(self, _Pending)
        if position == 0:
            pending.stats = stats
            return outputs_ND
        if pending.noted is not None:
            # The class weighs them next, in these very terms.
            order_N, choices = pending.order_N, pending.noted.norms_TK.shape[1]
            weighted_ND = outputs_ND * pending.weights_N[:, None]
            pending.noted.add(order_N.div(choices, rounding_mode="trunc"), order_N.remainder(choices), weighted_ND)
            pending.noted.leave_out()
        self._streamed.served(now, _sum(pending.stats, stats), pending.absent, pending.noted)
        pending.noted = None
        return outputs_ND


def _group(index_TK: torch.Tensor, weights_TK: torch.Tensor, num_experts: int, logits_TE: torch.Tensor) -> Grouped:
    """Groups as JetMoE's router does, with what is left out (id E) at the end."""
    flat_N = index_TK.flatten()
    order_N = flat_N.argsort(stable=True)
    sizes = flat_N.bincount(minlength=num_experts + 1)[:num_experts].tolist()
    tokens_N = order_N.div(index_TK.shape[1], rounding_mode="trunc")
    return order_N, tokens_N, weights_TK.flatten()[order_N], sizes, logits_TE


def _sum(first: LeaseStats, second: LeaseStats) -> LeaseStats:
    return LeaseStats(**{f.name: getattr(first, f.name) + getattr(second, f.name) for f in fields(LeaseStats)})
