"""One bank of streamed experts while the model runs: route → ensure resident → compute → observe."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from coterie.cache import ExpertCache, LeaseStats
from coterie.errors import LoadError, UnsupportedError
from coterie.hf.banks import ExpertBank
from coterie.hf.experts import eager_forward, uses_common_forward
from coterie.integration.clock import StepClock
from coterie.integration.standin import ExpertCursor, StackedStandIn
from coterie.kernels import Accumulator, TokenKernel, group_by_expert, swiglu_rows
from coterie.routing import Routed
from coterie.spec import ExpertsSelected, ExpertsServed

MissingPolicy = Callable[[torch.Tensor, torch.Tensor], Routed]
"""Replaces or leaves out absent experts: (ids [T, K], weights [T, K]) → routed."""


@dataclass(slots=True)
class BankCounters:
    """Running totals of one bank.

    Attributes:
        requested: Distinct experts asked for, added up over forward passes.
        hits: Of these, found resident.
        misses: Of these, read.
        decode_requested: The part of ``requested`` that decode steps asked for.
        decode_hits: The part of ``hits`` in decode steps.
        bytes_read: Bytes read from disk.
        wait_s: Seconds that compute waited for reads.
        evictions: Experts evicted to make room.
        absent: (token, expert) pairs whose expert is not in the store.
    """

    requested: int = 0
    hits: int = 0
    misses: int = 0
    decode_requested: int = 0
    decode_hits: int = 0
    bytes_read: int = 0
    wait_s: float = 0.0
    evictions: int = 0
    absent: int = 0

    def add(self, stats: LeaseStats, absent: int, *, decode: bool) -> None:
        """Adds one lease's figures and how many chosen pairs were absent."""
        self.absent += absent
        self.requested += stats.requested
        self.hits += stats.hits
        if stats.misses:
            self.misses += stats.misses
            self.bytes_read += stats.bytes_read
            self.wait_s += stats.wait_s
            self.evictions += stats.evictions
        if decode:
            self.decode_requested += stats.requested
            self.decode_hits += stats.hits


class StreamedBank:
    """What an experts module computes with instead of its stacked parameters.

    Args:
        bank: Identity and shapes.
        module: The experts module; its stacked parameters are taken out.
        clock: The component's forward passes.
        missing: Policy for absent experts, or None if all are present.
        token_kernel: Makes :class:`TokenKernel`, or gives one that was made for the same arguments.
    """

    def __init__(
        self,
        bank: ExpertBank,
        module: nn.Module,
        clock: StepClock,
        missing: MissingPolicy | None,
        token_kernel: Callable[..., TokenKernel],
    ) -> None:
        self.bank = bank
        self.counters = BankCounters()
        self._lock = threading.Lock()
        self.missing = missing
        self._clock = clock
        self._module = module
        self._keys = [bank.key.expert(e) for e in range(bank.num_experts)]
        self._cache: ExpertCache | None = None
        self._cursor = ExpertCursor()
        self._kernel: TokenKernel | None = None
        if uses_common_forward(module):
            shapes = (bank.parameters["gate_up_proj"], bank.parameters["down_proj"])
            self._kernel = token_kernel(*shapes, bank.dtypes["gate_up_proj"])
        self._activation = getattr(module, "act_fn", None)
        self._dtypes = tuple(bank.dtypes.values())
        self._casts = False
        self._replace_parameters()

    def connect(self, cache: ExpertCache, stored: tuple[torch.dtype, ...] | None) -> None:
        """Gives the bank its cache; ``stored`` are the dtypes of the records' fields."""
        self._cache = cache
        self._casts = stored is not None and stored != self._dtypes

    def forward(
        self, hidden_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """What the experts module computes; returns [T, D]."""
        if hidden_TD.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                "A streamed model cannot be trained: its experts' memory is written again and again.",
                advice="Run it under torch.no_grad(), or load it with transformers for training.",
            )
        observers = self._clock.observers
        if observers:
            self._announce(top_k_index_TK, top_k_weights_TK)
        absent = 0
        if self.missing is not None:
            top_k_index_TK, top_k_weights_TK, absent = self.missing(top_k_index_TK, top_k_weights_TK)
        # Under autocast, linear casts and other products do not.
        kernel = self._kernel
        if kernel is not None and hidden_TD.shape[0] == 1 and not torch.is_autocast_enabled("cpu"):
            result, stats = self._forward_token(kernel, hidden_TD, top_k_index_TK, top_k_weights_TK)
        elif kernel is not None:
            result, stats = self._forward_rows(hidden_TD, top_k_index_TK, top_k_weights_TK)
        else:
            result, stats = self._forward_class(hidden_TD, top_k_index_TK, top_k_weights_TK)
        with self._lock:
            self.counters.add(stats, absent, decode=self._clock.phase == "decode")
        if observers:
            self._report(stats, absent)
        return result

    def _forward_token(
        self, kernel: TokenKernel, hidden_1D: torch.Tensor, index_1K: torch.Tensor, weights_1K: torch.Tensor
    ) -> tuple[torch.Tensor, LeaseStats]:
        """One token: no grouping, no padding; a single lock operation if all its experts are resident."""
        ids = index_1K.tolist()[0]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        if ids[order[-1]] >= self.bank.num_experts or len(set(ids)) < len(ids):
            return self._forward_rows(hidden_1D, index_1K, weights_1K)
        keys = [self._keys[expert] for expert in ids]
        cache = self._require_cache()
        held = cache.try_hold(keys)
        if held is not None:
            with held:
                result = self._token(kernel, hidden_1D, held.tensors, weights_1K.mT, order)
            return result, _all_hits(len(keys))
        with cache.lease(keys, phase=self._clock.phase) as lease:
            if lease.together and not self._overlap_pays(hidden_1D):
                arrived = dict(lease)
                result = self._token(kernel, hidden_1D, [arrived[key] for key in keys], weights_1K.mT, order)
                return result, lease.stats
            outputs = Accumulator(hidden_1D, [ids[slot] for slot in order])
            place = {expert: slot for slot, expert in enumerate(ids)}
            token = torch.zeros(1, dtype=torch.int64)
            for key, tensors in lease:
                slot = place[key.expert]
                gate_up, down = self._cast(tensors)
                rows = swiglu_rows(hidden_1D, gate_up, down, self._activation_function)
                outputs.add(key.expert, token, rows * weights_1K[:, slot : slot + 1])
            return outputs.result_TD, lease.stats

    def _overlap_pays(self, hidden_1D: torch.Tensor) -> bool:
        """Whether computing each expert as it arrives is worth more than the fewer calls of computing all at once."""
        return self.bank.parameters["gate_up_proj"][0] * hidden_1D.shape[1] >= 1 << 18

    def _token(
        self,
        kernel: TokenKernel,
        hidden_1D: torch.Tensor,
        tensors: list[tuple[torch.Tensor, ...]],
        weights_K1: torch.Tensor,
        order: list[int],
    ) -> torch.Tensor:
        gate_ups, downs = zip(*map(self._cast, tensors) if self._casts else tensors, strict=True)
        return kernel(hidden_1D, gate_ups, downs, weights_K1, self._activation_function, order)

    def _forward_rows(
        self, hidden_TD: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[torch.Tensor, LeaseStats]:
        """Many tokens, expert-major: each needed expert is read once."""
        grouping = group_by_expert(index_TK, self.bank.num_experts)
        outputs = Accumulator(hidden_TD, grouping.experts)
        place = {expert: i for i, expert in enumerate(grouping.experts)}
        keys = [self._keys[expert] for expert in grouping.experts]
        with self._require_cache().lease(keys, phase=self._clock.phase) as lease:
            for key, tensors in lease:
                i = place[key.expert]
                tokens_N = grouping.tokens[i]
                gate_up, down = self._cast(tensors)
                rows_ND = swiglu_rows(hidden_TD[tokens_N], gate_up, down, self._activation_function)
                outputs.add(key.expert, tokens_N, rows_ND * weights_TK[tokens_N, grouping.slots[i], None])
            return outputs.result_TD, lease.stats

    def _forward_class(
        self, hidden_TD: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[torch.Tensor, LeaseStats]:
        """The class's own eager forward, over stand-ins that fetch the expert they are indexed with."""
        experts = sorted({e for row in index_TK.tolist() for e in row if e < self.bank.num_experts})
        if not experts:
            return torch.zeros_like(hidden_TD), LeaseStats()
        left_out_TK = index_TK >= self.bank.num_experts
        if left_out_TK.any():
            # Not every release's eager forward knows the sentinel: an expert that is read anyway takes weight 0.
            index_TK = index_TK.masked_fill(left_out_TK, experts[0])
            weights_TK = weights_TK.masked_fill(left_out_TK, 0)
        keys = [self._keys[expert] for expert in experts]
        with self._require_cache().lease(keys, ordered=True, phase=self._clock.phase) as lease:
            self._cursor.start(lease)
            try:
                result = eager_forward(self._module)(self._module, hidden_TD, index_TK, weights_TK)
            finally:
                self._cursor.stop()
            return result, lease.stats

    def _cast(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not self._casts:
            return tensors
        return tuple(tensor.to(dtype) for tensor, dtype in zip(tensors, self._dtypes, strict=True))

    @functools.cached_property
    def _activation_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._activation is None:
            raise LoadError(f"{self.bank.path} has no activation function.", module=self.bank.path)
        activation: Callable[[torch.Tensor], torch.Tensor] = self._activation
        return activation

    def _require_cache(self) -> ExpertCache:
        if self._cache is None:
            raise LoadError(f"{self.bank.path} was run before its experts were connected.", module=self.bank.path)
        return self._cache

    def _replace_parameters(self) -> None:
        module = self._module
        for position, (name, shape) in enumerate(self.bank.parameters.items()):
            del module._parameters[name]
            full = f"{self.bank.path}.{name}"
            whole = (self.bank.num_experts, *shape)
            module.__dict__[name] = StackedStandIn(self._cursor, position, whole, self.bank.dtypes[name], full)
        module.__dict__["_is_hf_initialized"] = True
        # Shadows the class's forward, and with it transformers' dispatch to one of its experts implementations.
        module.__dict__["forward"] = self.forward

    def _announce(self, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        event = ExpertsSelected(
            step=self._clock.step,
            bank=self.bank.key,
            expert_ids=index_TK.numpy().astype(np.uint16),
            weights=weights_TK.detach().to(torch.float32).numpy(),
        )
        for observer in tuple(self._clock.observers):
            observer.on_event(event)

    def _report(self, stats: LeaseStats, absent: int) -> None:
        event = ExpertsServed(
            step=self._clock.step,
            bank=self.bank.key,
            requested=stats.requested,
            hits=stats.hits,
            misses=stats.misses,
            bytes_read=stats.bytes_read,
            wait_s=stats.wait_s,
            evictions=stats.evictions,
            absent=absent,
        )
        for observer in tuple(self._clock.observers):
            observer.on_event(event)


@functools.cache
def _all_hits(count: int) -> LeaseStats:
    return LeaseStats(requested=count, hits=count)
