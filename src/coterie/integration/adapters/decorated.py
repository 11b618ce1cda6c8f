"""The classes that transformers decorates: a fast path for the arithmetic of most, their own forward for the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch

from coterie.cache import LeaseStats, Tensors
from coterie.errors import LoadError
from coterie.hf.experts import uses_common_forward
from coterie.integration.adapters.adapter import Workplace
from coterie.integration.adapters.class_forward import ClassForward
from coterie.kernels import Accumulator, TokenKernel, group_by_expert, swiglu_rows


class DecoratedExperts:
    """What transformers' dispatch to an experts implementation is replaced by.

    Args:
        place: Where to work.
    """

    def __init__(self, place: Workplace) -> None:
        self._streamed = place.streamed
        self._bank = bank = place.streamed.bank
        self._class_forward = ClassForward(place)
        self._kernel: TokenKernel | None = None
        if uses_common_forward(place.module):
            shapes = (bank.parameters["gate_up_proj"], bank.parameters["down_proj"])
            self._kernel = place.token_kernel(*shapes, bank.dtypes["gate_up_proj"])
        self._act_fn = getattr(place.module, "act_fn", None)
        # Shadows the class's forward, and with it transformers' dispatch to one of its experts implementations.
        place.module.__dict__["forward"] = self.forward

    def forward(
        self, hidden_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """What the experts module computes; returns [T, D]."""
        index_TK, weights_TK, absent = self._streamed.route(hidden_TD, top_k_index_TK, top_k_weights_TK)
        # Under autocast, linear casts and other products do not. Decoded experts are so much larger than their records
        # that only one is in memory at a time.
        kernel = self._kernel
        together = not self._streamed.decodes and not torch.is_autocast_enabled("cpu")
        if kernel is not None and hidden_TD.shape[0] == 1 and together:
            result, stats = self._forward_token(kernel, hidden_TD, index_TK, weights_TK)
        elif kernel is not None:
            result, stats = self._forward_rows(hidden_TD, index_TK, weights_TK)
        else:
            result, stats = self._class_forward.compute(hidden_TD, index_TK, weights_TK)
        self._streamed.served(stats, absent)
        return result

    def _forward_token(
        self, kernel: TokenKernel, hidden_1D: torch.Tensor, index_1K: torch.Tensor, weights_1K: torch.Tensor
    ) -> tuple[torch.Tensor, LeaseStats]:
        """One token: no grouping, no padding; a single lock operation if all its experts are resident."""
        ids = index_1K.tolist()[0]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        if ids[order[-1]] >= self._bank.num_experts or len(set(ids)) < len(ids):
            return self._forward_rows(hidden_1D, index_1K, weights_1K)
        streamed = self._streamed
        keys = [streamed.keys[expert] for expert in ids]
        held = streamed.cache.try_hold(keys)
        if held is not None:
            with held:
                result = self._token(kernel, hidden_1D, held.tensors, weights_1K.mT, order)
            return result, _all_hits(len(keys))
        with streamed.lease(ids) as lease:
            if lease.together and not self._overlap_pays(hidden_1D):
                arrived = dict(lease)
                experts = [arrived[key] for key in keys]
                result = self._token(kernel, hidden_1D, experts, weights_1K.mT, order)
                return result, lease.stats
            outputs = Accumulator(hidden_1D, [ids[slot] for slot in order])
            place = {expert: slot for slot, expert in enumerate(ids)}
            token = torch.zeros(1, dtype=torch.int64)
            for key, (gate_up, down) in lease:
                slot = place[key.expert]
                rows = swiglu_rows(hidden_1D, gate_up, down, self._activation)
                outputs.add(key.expert, token, rows * weights_1K[:, slot : slot + 1])
            return outputs.result_TD, lease.stats

    def _overlap_pays(self, hidden_1D: torch.Tensor) -> bool:
        """Whether computing each expert as it arrives is worth more than the fewer calls of computing all at once."""
        return self._bank.parameters["gate_up_proj"][0] * hidden_1D.shape[1] >= 1 << 18

    def _token(
        self,
        kernel: TokenKernel,
        hidden_1D: torch.Tensor,
        tensors: list[Tensors],
        weights_K1: torch.Tensor,
        order: list[int],
    ) -> torch.Tensor:
        gate_ups, downs = zip(*tensors, strict=True)
        return kernel(hidden_1D, gate_ups, downs, weights_K1, self._activation, order)

    def _forward_rows(
        self, hidden_TD: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[torch.Tensor, LeaseStats]:
        """Many tokens, expert-major: each needed expert is read once."""
        grouping = group_by_expert(index_TK, self._bank.num_experts)
        outputs = Accumulator(hidden_TD, grouping.experts)
        place = {expert: i for i, expert in enumerate(grouping.experts)}
        with self._streamed.lease(grouping.experts) as lease:
            for key, (gate_up, down) in self._streamed.decoded(lease):
                i = place[key.expert]
                tokens_N = grouping.tokens[i]
                rows_ND = swiglu_rows(hidden_TD[tokens_N], gate_up, down, self._activation)
                outputs.add(key.expert, tokens_N, rows_ND * weights_TK[tokens_N, grouping.slots[i], None])
            return outputs.result_TD, lease.stats

    @functools.cached_property
    def _activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._act_fn is None:
            raise LoadError(f"{self._bank.path} has no activation function.", module=self._bank.path)
        return cast(Callable[[torch.Tensor], torch.Tensor], self._act_fn)


@functools.cache
def _all_hits(count: int) -> LeaseStats:
    return LeaseStats(requested=count, hits=count)
