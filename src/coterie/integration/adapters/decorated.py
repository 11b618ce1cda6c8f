"""The classes that transformers decorates: a fast path for the arithmetic of most, their own forward for the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch

from coterie.cache import LeaseStats
from coterie.errors import LoadError
from coterie.hf.experts import uses_common_forward
from coterie.integration.adapters.adapter import AdapterSite
from coterie.integration.adapters.class_forward import ClassForward
from coterie.integration.quantised import QuantisedExperts, TokenExperts
from coterie.kernels import Accumulator, TokenKernel, group_by_expert, swiglu_rows
from coterie.passes.contributions import Contributions
from coterie.passes.current import Pass
from coterie.passes.forwards import install


class DecoratedExperts:
    """What transformers' dispatch to an experts implementation is replaced by.

    Args:
        site: Where to work.
    """

    def __init__(self, site: AdapterSite) -> None:
        self._streamed = site.streamed
        self._bank = bank = site.streamed.bank
        self._class_forward = ClassForward(site)
        self._kernel: TokenKernel | None = None
        if uses_common_forward(site.module):
            shapes = (bank.parameters["gate_up_proj"], bank.parameters["down_proj"])
            self._kernel = site.token_kernel(*shapes, bank.dtypes["gate_up_proj"])
        self._act_fn = getattr(site.module, "act_fn", None)
        # Shadows the class's forward, and with it transformers' dispatch to one of its experts implementations.
        install(site.module, "experts", self.forward)

    def forward(
        self,
        hidden_TD: torch.Tensor,
        top_k_index_TK: torch.Tensor,
        top_k_weights_TK: torch.Tensor,
        *,
        rows: bool = False,
    ) -> torch.Tensor:
        """What the experts module computes; returns [T, D].

        Args:
            hidden_TD: The tokens.
            top_k_index_TK: What the router chose.
            top_k_weights_TK: Gate weights.
            rows: Whether quantised experts compute each token as they compute it alone, whatever the number of tokens.
        """
        streamed = self._streamed
        now = streamed.now()
        index_TK, weights_TK, absent = streamed.route(now, hidden_TD, top_k_index_TK, top_k_weights_TK)
        noted = streamed.contributions(now, top_k_index_TK, index_TK)
        kernel = self._kernel
        quantised = self._quantised
        alone = streamed.before_expert is not None
        if quantised is not None and not alone and quantised.serves(hidden_TD):
            return quantised.compute(now, hidden_TD, index_TK, weights_TK, absent, noted, rows=rows)
        # Under autocast, linear casts and other products do not. Decoded experts are so much larger than their records
        # that only one is in memory at a time.
        together = not streamed.decodes and not alone and not torch.is_autocast_enabled("cpu")
        if kernel is not None and hidden_TD.shape[0] == 1 and together:
            ids = index_TK.tolist()[0]
            weights_K1 = weights_TK.mT
            if index_TK is not top_k_index_TK and noted is None:
                end = self._bank.num_experts + self._bank.identities
                computed = [slot for slot, expert in enumerate(ids) if expert < end]
                ids, weights_K1 = [ids[slot] for slot in computed], weights_K1[computed]
            order = sorted(range(len(ids)), key=ids.__getitem__)
            if ids and ids[order[-1]] < self._bank.num_experts and len(set(ids)) == len(ids):
                return self._forward_token(now, kernel, hidden_TD, ids, weights_K1, order, absent, noted)
        if kernel is not None:
            result, stats = self._forward_rows(now, hidden_TD, index_TK, weights_TK, noted)
        else:
            result, stats = self._class_forward.compute(now, hidden_TD, index_TK, weights_TK, noted)
        streamed.served(now, stats, absent, noted)
        return result

    def _forward_token(
        self,
        now: Pass,
        kernel: TokenKernel,
        hidden_1D: torch.Tensor,
        ids: list[int],
        weights_K1: torch.Tensor,
        order: list[int],
        absent: int,
        noted: Contributions | None,
    ) -> torch.Tensor:
        """One token: no grouping, no padding; a single lock operation if all its experts are resident."""
        streamed = self._streamed
        tell = None if noted is None else noted.add_token
        held = streamed.try_hold(now, ids)
        if held is not None:
            try:
                streamed.look_ahead()
                gate_ups, downs = zip(*held.tensors, strict=True)
                result = kernel(hidden_1D, gate_ups, downs, weights_K1, self._activation, order, tell)
            finally:
                held.release()
            streamed.served_from_memory(now, len(ids), absent, noted)
            return result
        with streamed.lease(now, ids) as lease:
            streamed.look_ahead()
            if lease.together and not self._overlap_pays(hidden_1D):
                arrived = {key.expert: tensors for key, tensors in lease}
                gate_ups, downs = zip(*(arrived[expert] for expert in ids), strict=True)
                result = kernel(hidden_1D, gate_ups, downs, weights_K1, self._activation, order, tell)
            else:
                outputs = Accumulator(hidden_1D, [ids[slot] for slot in order])
                place = {expert: slot for slot, expert in enumerate(ids)}
                token = torch.zeros(1, dtype=torch.int64)
                for key, (gate_up, down) in lease:
                    slot = place[key.expert]
                    rows = swiglu_rows(hidden_1D, gate_up, down, self._activation) * weights_K1[slot]
                    outputs.add(key.expert, token, rows)
                    if noted is not None:
                        noted.add(token, torch.tensor([slot]), rows.to(hidden_1D.dtype))
                result = outputs.result_TD
            stats = lease.stats
        streamed.served(now, stats, absent, noted)
        return result

    def _overlap_pays(self, hidden_1D: torch.Tensor) -> bool:
        """Whether computing each expert as it arrives is worth more than the fewer calls of computing all at once."""
        return self._bank.parameters["gate_up_proj"][0] * hidden_1D.shape[1] >= 1 << 18

    def _forward_rows(
        self,
        now: Pass,
        hidden_TD: torch.Tensor,
        index_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        noted: Contributions | None,
    ) -> tuple[torch.Tensor, LeaseStats]:
        """Many tokens, expert-major: each needed expert is read once."""
        grouping = group_by_expert(index_TK, self._bank.num_experts)
        outputs = Accumulator(hidden_TD, grouping.experts)
        place = {expert: i for i, expert in enumerate(grouping.experts)}
        with self._streamed.lease(now, grouping.experts) as lease:
            self._streamed.look_ahead()
            for key, (gate_up, down) in self._streamed.decoded(lease):
                i = place[key.expert]
                tokens_N, slots_N = grouping.tokens[i], grouping.slots[i]
                rows_ND = swiglu_rows(hidden_TD[tokens_N], gate_up, down, self._activation)
                rows_ND = rows_ND * weights_TK[tokens_N, slots_N, None]
                outputs.add(key.expert, tokens_N, rows_ND)
                if noted is not None:
                    noted.add(tokens_N, slots_N, rows_ND.to(hidden_TD.dtype))
            return outputs.result_TD, lease.stats

    @functools.cached_property
    def token_experts(self) -> TokenExperts | None:
        """For a decode step beside :meth:`forward`, by one native call; None where that does not serve them."""
        return None if self._quantised is None else self._quantised.token_experts()

    @functools.cached_property
    def _quantised(self) -> QuantisedExperts | None:
        if self._kernel is None or not self._streamed.decodes:
            return None
        return QuantisedExperts.of(self._streamed, self._act_fn)

    @functools.cached_property
    def _activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._act_fn is None:
            raise LoadError(f"{self._bank.path} has no activation function.", module=self._bank.path)
        return cast(Callable[[torch.Tensor], torch.Tensor], self._act_fn)
