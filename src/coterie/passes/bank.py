"""One bank of streamed experts while the model runs: who is wanted, where it is, and who is told."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from coterie.cache import BankView, ExpertCache, Held, Lease, LeaseStats, Tensors
from coterie.errors import LoadError, UnsupportedError
from coterie.eviction import LAST_TOKENS, PromptUse
from coterie.hf.banks import ExpertBank
from coterie.passes.clock import StepClock
from coterie.passes.cold import ColdDrop
from coterie.passes.contributions import Contributions, Noted
from coterie.passes.current import Pass
from coterie.passes.decoder import BankDecoder
from coterie.passes.order import LayerOrder
from coterie.routing import Routed
from coterie.spec import BankKey, ExpertKey, ExpertsContributed, ExpertsSelected, ExpertsServed

_BATCHES = 16
"""How many batches of experts the cache has room for, at least."""

_BATCH_NBYTES = 32 * 2**20
"""Bytes from which on computing with more experts at once saves nothing."""

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
        left_out: Distinct experts that decode steps left out instead of reading them, added up over steps.
        bytes_not_read: Bytes of their records.
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
    left_out: int = 0
    bytes_not_read: int = 0

    def add(self, stats: LeaseStats, absent: int, *, decode: bool) -> None:
        """Adds one lease's figures and how many chosen pairs were absent."""
        self.absent += absent
        self.requested += stats.requested
        self.hits += stats.hits
        self.misses += stats.misses
        self.bytes_read += stats.bytes_read
        self.wait_s += stats.wait_s
        self.evictions += stats.evictions
        if decode:
            self.decode_requested += stats.requested
            self.decode_hits += stats.hits


class _Prompt:
    """What a prefill's last tokens chose of a bank, [T, K]; None where that says nothing."""

    last_TK: torch.Tensor | None = None


class StreamedBank:
    """The experts of one bank, for the adapter that computes with them.

    An adapter looks at :attr:`now` once. With that it calls :meth:`route` with what the router chose,
    :meth:`contributions` for where to note what experts add, :meth:`lease` for the experts that are left, and
    :meth:`served` when it has computed.

    Args:
        bank: Identity and shapes.
        clock: The component's forward passes.
        missing: Policy for absent experts, or None if all are present.

    Attributes:
        keys: Key of each expert.
        now: This thread's forward pass of the component.
        decodes: Whether the fields of a record are not the parameters themselves.
        all_fit: Whether no expert is ever evicted.
        batch_nbytes: Bytes of experts in memory that are best computed with at once: so little of the cache that there
            is room for reading meanwhile.
        view: The experts in the cache, once there is one.
        cold: Leaves out light experts that are not in memory; None where all are read.
        order: What the component's forward passes ask for after this bank; None where nobody keeps it.
        before_expert: Told of each expert and its parameters before it is computed with; then every expert is computed
            with by itself, by products of torch. None where nobody wants to know.
        look_ahead: To be called once the reads of what a forward pass asks for are under way: the time until they are
            done is used to predict what comes next.
    """

    def __init__(self, bank: ExpertBank, clock: StepClock, missing: MissingPolicy | None) -> None:
        self.bank = bank
        self.counters = BankCounters()
        self.missing = missing
        self.keys = [bank.key.expert(e) for e in range(bank.num_experts)]
        # The first id that is no expert's, with or without weights.
        self._end = bank.num_experts + bank.identities
        self.cold: ColdDrop | None = None
        self._lock = threading.Lock()
        self.now = clock.now
        self._cache: ExpertCache | None = None
        self._decoder: BankDecoder | None = None
        self.decodes = False
        self.all_fit = False
        self.batch_nbytes = 0
        self.view: BankView | None = None
        self.order: LayerOrder | None = None
        self.before_expert: Callable[[StreamedBank, ExpertKey, Tensors], None] | None = None
        self.look_ahead: Callable[[], None] = _nothing

    def connect(self, cache: ExpertCache, decoder: BankDecoder, drop_cold: float | None = None) -> None:
        """Gives the bank its cache.

        Args:
            cache: The cache.
            decoder: What makes parameters of the records in it.
            drop_cold: Share of a token's highest gate weight below which decode steps leave out experts that are not
                in memory; None to read them all.
        """
        self._cache = cache
        self.view = cache.view(self.bank.key, self.bank.num_experts)
        self.all_fit = cache.total_bytes <= cache.capacity
        self.batch_nbytes = min(cache.capacity // _BATCHES, _BATCH_NBYTES)
        if drop_cold is not None:
            self.cold = ColdDrop(drop_cold, self.keys, self._end, cache)
        self.decodes = decoder.changes
        self._decoder = decoder if decoder.changes else None

    def count_with(self, other: StreamedBank) -> None:
        """Adds to the counters of a bank whose experts these are too."""
        self.counters, self._lock = other.counters, other._lock

    def route(
        self, now: Pass, hidden: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> Routed:
        """Announces what the router chose, and applies what changes it.

        That is the policy for absent experts, then the limit on their number, then, in decode steps, ``drop_cold``.

        Args:
            now: The pass.
            hidden: What the experts are given.
            top_k_index_TK: What the router chose.
            top_k_weights_TK: Gate weights.

        Returns:
            The very tensors that were given if nothing is left out; slots that are have the id E, or the one after
            the last identity expert.

        Raises:
            UnsupportedError: If gradients are wanted.
            ExpertMissingError: If the policy says so.
            Stopped: If nobody wants the pass any more.
        """
        if torch.is_grad_enabled() and (hidden.requires_grad or top_k_weights_TK.requires_grad):
            raise UnsupportedError(
                "A streamed model cannot be trained: its experts' memory is written again and again.",
                advice="Run it under torch.no_grad(), or load it with transformers for training.",
            )
        if now.observers:
            self.chosen(now, top_k_index_TK, top_k_weights_TK)
        if (request := now.request) is not None and request.before_layer is not None:
            request.before_layer()
        if self.missing is None:
            routed = Routed(top_k_index_TK, top_k_weights_TK, 0)
        else:
            routed = self.missing(top_k_index_TK, top_k_weights_TK)
        if now.limit is not None:
            routed = now.limit(self.bank.key, routed, self._end)
        if not now.decode and not self.all_fit:
            # A single token comes as in decoding: what is in memory after it must not depend on time.
            # Copied, as a view would keep the ids of the whole prompt.
            now.state(self, _Prompt).last_TK = routed.ids[-LAST_TOKENS:].clone() if len(routed.ids) > 1 else None
        if self.cold is None or not now.decode:
            return routed
        routed, experts, nbytes = self.cold(routed)
        if experts:
            with self._lock:
                self.counters.left_out += experts
                self.counters.bytes_not_read += nbytes
        return routed

    def contributions(self, now: Pass, chosen_TK: torch.Tensor, routed_TK: torch.Tensor) -> Contributions | None:
        """Where to note what the experts of this forward pass add; None if nobody wants to know.

        Args:
            now: The pass.
            chosen_TK: As given to :meth:`route`.
            routed_TK: The ids that it gave back.
        """
        if not now.contributions:
            return None
        return Contributions(chosen_TK, routed_TK, self._end)

    def experts_in(self, index_TK: torch.Tensor) -> list[int]:
        """Ascending ids of the experts with weights that are among these ids."""
        return [expert for expert in torch.unique(index_TK).tolist() if expert < self.bank.num_experts]

    def try_hold(self, now: Pass, experts: Sequence[int]) -> Held | None:
        """Holds experts by id if all of them are resident; see :meth:`BankView.try_hold`."""
        if self.view is None:
            self._unconnected()
        return self.view.try_hold(experts, now.consumer)

    def lease(self, now: Pass, experts: Iterable[int], *, ordered: bool = False) -> Lease:
        """A lease of experts by id; ``ordered`` yields them in this order.

        A prefill also says what it will ask for next, and what its last tokens use.
        """
        if self._cache is None:
            self._unconnected()
        keys = [self.keys[expert] for expert in experts]
        upcoming: Iterable[ExpertKey] = ()
        prompt = None
        if not now.decode:
            if self.order is not None:
                upcoming = self.order.reached(self.bank.path, now.number, len(keys))
            prompt = self._prompt_use(now, self._cache)
        # Who is told of experts is told of them in the same order every time.
        ordered = ordered or self.before_expert is not None
        return self._cache.lease(
            keys, consumer=now.consumer, ordered=ordered, phase=now.phase, upcoming=upcoming, prompt=prompt
        )

    def _prompt_use(self, now: Pass, cache: ExpertCache) -> PromptUse[ExpertKey] | None:
        """What the last tokens of a prefill use, as far as there is room for it; told once, with its first lease."""
        state = now.state(self, _Prompt)
        last_TK, state.last_TK = state.last_TK, None
        if last_TK is None:
            return None
        experts = self.bank.num_experts
        visits = [[self.keys[e] for e in dict.fromkeys(row) if e < experts] for row in last_TK.tolist()]
        return PromptUse(visits, int(experts * cache.warm_share))

    @property
    def decoder(self) -> BankDecoder | None:
        """What makes parameters of the records, or None if they are the parameters."""
        return self._decoder

    def may_hold(self, now: Pass) -> bool:
        """Whether a pass may take all its experts at once: a prefill would else push out what decoding has warmed."""
        return self.all_fit or now.decode

    def decoded(self, lease: Lease) -> Iterator[tuple[ExpertKey, Tensors]]:
        """The experts of a lease as they come, with their parameters."""
        experts = lease if self._decoder is None else self._decoder.each(lease)
        return experts if self.before_expert is None else self._told(experts, self.before_expert)

    def _told(
        self, experts: Iterable[tuple[ExpertKey, Tensors]], tell: Callable[[StreamedBank, ExpertKey, Tensors], None]
    ) -> Iterator[tuple[ExpertKey, Tensors]]:
        for key, tensors in experts:
            tell(self, key, tensors)
            yield key, tensors

    def served_from_memory(self, now: Pass, experts: int, absent: int, noted: Noted | None = None) -> None:
        """As :meth:`served`, for a forward pass that found all its experts resident."""
        counters = self.counters
        with self._lock:
            counters.requested += experts
            counters.hits += experts
            if now.decode:
                counters.decode_requested += experts
                counters.decode_hits += experts
            if absent:
                counters.absent += absent
        if now.observers:
            self._report(now, LeaseStats(requested=experts, hits=experts), absent, noted)

    def served(self, now: Pass, stats: LeaseStats, absent: int, noted: Noted | None = None) -> None:
        """Counts and tells how the experts of one forward pass became resident, and what they added, if noted."""
        with self._lock:
            self.counters.add(stats, absent, decode=now.decode)
        if now.observers:
            self._report(now, stats, absent, noted)

    def _unconnected(self) -> NoReturn:
        raise LoadError(f"{self.bank.path} was run before its experts were connected.", module=self.bank.path)

    def chosen(self, now: Pass, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Tells observers what the router chose."""
        now.tell(functools.partial(_selected, now.number, self.bank.key, index_TK, weights_TK))

    def _report(self, now: Pass, stats: LeaseStats, absent: int, noted: Noted | None) -> None:
        step, key, tell = now.number, self.bank.key, now.tell
        if noted is not None:
            tell(functools.partial(_contributed, step, key, noted))
        tell(functools.partial(_served, step, key, stats, absent))


def _selected(step: int, bank: BankKey, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> ExpertsSelected:
    return ExpertsSelected(
        step=step,
        bank=bank,
        expert_ids=index_TK.numpy().astype(np.uint16),
        weights=weights_TK.detach().to(torch.float32).numpy(),
    )


def _contributed(step: int, bank: BankKey, noted: Noted) -> ExpertsContributed | None:
    measured = noted.measured()
    return None if measured is None else ExpertsContributed(step=step, bank=bank, contributions=measured)


def _served(step: int, bank: BankKey, stats: LeaseStats, absent: int) -> ExpertsServed:
    return ExpertsServed(
        step=step,
        bank=bank,
        requested=stats.requested,
        hits=stats.hits,
        misses=stats.misses,
        bytes_read=stats.bytes_read,
        wait_s=stats.wait_s,
        evictions=stats.evictions,
        absent=absent,
    )


def _nothing() -> None:
    """Where nobody looks ahead."""
