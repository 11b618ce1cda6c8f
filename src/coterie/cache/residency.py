"""Which experts are in memory: the table, the policy and the arena, kept in step."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from coterie.cache.arena import SlotArena
from coterie.cache.bank_view import ByBank, Holds
from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry
from coterie.cache.early_memory import EarlyMemory
from coterie.cache.growth import Growth, native_touch
from coterie.cache.pinned import Pinned
from coterie.cache.predictions import Predictions
from coterie.cache.statistics import Counters
from coterie.errors import ExpertMissingError, MemoryBudgetError, UsageError
from coterie.eviction import TURNED_OVER, EvictionPolicy, PromptUse, TrustPolicy
from coterie.spec import ExpertKey, ExpertSource, RecordLayout, format_bytes


class Residency:
    """The experts that have a slot, within a byte budget.

    Everything here runs under the cache's lock. What takes several steps (evicting, inserting) runs on the reading
    threads only, which no KeyboardInterrupt can strike; consumers merely look up, hold and note hits in a journal.

    Args:
        source: Where layouts come from.
        capacity: Bytes asked for.
        policy: Chooses victims.
        predictions: What leaves last, because it is predicted or worth having.
        holds: What must not leave, beside what leases hold; and the hits that the policy is to be told of.
        counters: Where evictions and the causes of reads are counted.
        early: Memory that was found already, if any.

    Attributes:
        loaded: What is resident. This and what follows is changed here alone.
        loading: What is on its way.
        by_bank: What is resident, by bank and id.
        policy: Chooses victims among what is not pinned.
        arena: The slots.
        growth: Whether reads wait for new memory.

    Raises:
        MemoryBudgetError: If the capacity is below :attr:`minimum`.
    """

    def __init__(
        self,
        source: ExpertSource,
        capacity: int,
        policy: EvictionPolicy[ExpertKey],
        predictions: Predictions,
        holds: Holds,
        counters: Counters,
        early: EarlyMemory | None = None,
    ) -> None:
        self._source = source
        self._layouts = {key: source.layout(key) for key in source.keys()}
        sizes = [SlotArena.slot_nbytes(layout.nbytes) for layout in self._layouts.values()]
        self.total_bytes = sum(sizes)
        self._largest = max(sizes, default=0)
        self._asked = capacity
        self._predictions = predictions
        self._holds = holds
        self._counters = counters
        self.loaded: dict[ExpertKey, Entry] = {}
        self.loading: dict[ExpertKey, Entry] = {}
        self.by_bank = ByBank(self.loaded)
        self.policy = policy
        self._pinned = Pinned(policy, predictions, self.loaded)
        self._colds: set[Entry] = set()
        # What was pinned when its bytes were added up last, and these.
        self._pinned_nbytes: tuple[frozenset[ExpertKey], int] = (frozenset(), 0)
        # Whether something may have to leave, and how much is there that nobody has asked for yet: while neither is so,
        # nobody will ask about uses.
        self._may_evict = holds.uses_matter = capacity < self.total_bytes
        self._unclaimed = 0
        if capacity < self.minimum:
            raise MemoryBudgetError(
                f"{format_bytes(capacity)} for experts is too little: two of the largest must fit, "
                f"which takes {format_bytes(self.minimum)}.",
                advice=f"Give at least {self.minimum} bytes of expert memory.",
                budget=capacity,
                minimum=self.minimum,
            )
        self.arena = SlotArena(self.capacity)
        self.growth = Growth(self.arena, native_touch(), waited=lambda: counters.wait_s)
        if early is not None and sizes:
            usual = statistics.mode(sizes)
            self.arena.adopt(usual, early)
            if self._may_evict:
                self.growth.go_on(early.seconds_per_byte, usual)

    @property
    def minimum(self) -> int:
        """The least capacity in bytes: two slots of the largest record, or all records where they take less."""
        return min(2 * self._largest, self.total_bytes)

    @property
    def capacity(self) -> int:
        """Bytes that experts may take: what was asked for, but no more than all records have."""
        return min(self._asked, self.total_bytes)

    @property
    def warm_share(self) -> float:
        """Share of what is not pinned that decoding can have in memory: a prefill turns over the rest."""
        if self.capacity >= self.total_bytes:
            return 1.0
        keys, pinned = self._pinned_nbytes
        if self._predictions.pinned is not keys:
            keys = self._predictions.pinned
            pinned = sum(self.slot_nbytes(key) for key in keys)
            self._pinned_nbytes = keys, pinned
        return max(0.0, self.capacity - self.capacity // TURNED_OVER - pinned) / max(1, self.total_bytes - pinned)

    @property
    def all_resident(self) -> bool:
        """Whether every record is loaded."""
        return len(self.loaded) == len(self._layouts)

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of a key; a source may have grown since it was opened.

        Raises:
            ExpertMissingError: If the source does not have it.
        """
        layout = self._layouts.get(key)
        if layout is not None:
            return layout
        if key not in self._source.keys():
            raise ExpertMissingError(f"Expert {key} is not in the store or checkpoint that was opened.", key=key)
        layout = self._source.layout(key)
        size = SlotArena.slot_nbytes(layout.nbytes)
        if 2 * size > self._asked and size > self._largest:
            raise MemoryBudgetError(
                f"Expert {key} takes {format_bytes(size)}; the expert memory of {format_bytes(self._asked)} "
                "cannot hold two of that size.",
                advice=f"Give at least {2 * size} bytes of expert memory.",
                budget=self._asked,
                minimum=2 * size,
            )
        self._layouts[key] = layout
        self.total_bytes += size
        self._largest = max(self._largest, size)
        self.arena.capacity = self.capacity
        self._may_evict = self._may_evict or self._asked < self.total_bytes
        self._count_unclaimed(0)
        return layout

    def has(self, key: ExpertKey) -> bool:
        """Whether the source has this key, as far as is known without asking it."""
        return key in self._layouts

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether a key is resident."""
        return key in self.loaded

    def find(self, key: ExpertKey) -> Entry | None:
        """The entry of a key that is resident or on its way."""
        return self.loaded.get(key) or self.loading.get(key)

    def note_use(self, entry: Entry) -> None:
        """Somebody asked for an entry: if it was read before that, this was right."""
        if entry.unclaimed:
            entry.unclaimed = False
            self._count_unclaimed(-1)
            self._counters.used[entry.cause] += 1
            self._counters.in_time[entry.cause] += entry.loaded

    @property
    def ranked(self) -> frozenset[ExpertKey]:
        """All that is resident, as the policy and what is pinned have it."""
        total = sum(entry.slot.nbytes for key, entry in self.loaded.items() if key not in self._pinned.aside)
        return frozenset(self.policy.victims(total, lambda key: True)).union(self._pinned.aside)

    def settle(self) -> None:
        """Tells the policy about the uses in the journal, and looks at what is pinned."""
        journal = self._holds.journal
        self.tell_hits()
        while journal:
            uses = journal.popleft()
            if isinstance(uses, PromptUse):
                self._pinned.observe(uses)
                for entry in filter(None, map(self.find, uses.kept)):
                    entry.cold = False
            self.tell_hits()
        if self._predictions.pinned is not self._pinned.keys:
            self._pinned.look()

    def tell_hits(self) -> None:
        """Tells the policy about the hits in the journal, up to what a prompt used; each hit is one step."""
        journal, find = self._holds.journal, self.loaded.get
        aside, colds = self._pinned.aside, self._colds
        while journal and not isinstance(uses := journal[0], PromptUse):
            journal.popleft()
            for entry in uses:
                key = entry.key
                # It may have left since: hits are told late, and a hold may have ended in between.
                if find(key) is entry:
                    if colds:
                        entry.cold = False
                    if not aside or key not in aside:
                        self.policy.hit(key)
                    if entry.unclaimed:
                        self.note_use(entry)

    def reserve(self, key: ExpertKey, layout: RecordLayout, claim: Claim, others: Sequence[Claim]) -> Entry | None:
        """A slot for a key that a claim needs, or None while everything is held.

        What may go, in this order: free slots; unheld experts in the policy's order, predicted ones last; what this
        claim has consumed; what other claims have consumed; what waiting claims hold but cannot use yet; what is
        pinned. A prefill gives up what it has consumed first. Where new memory is slow, it is taken after unheld
        experts, and by a prefill only when its consumer waits.
        """
        size = SlotArena.slot_nbytes(layout.nbytes)
        full, crowded = self.arena.shortage(size) > 0, self._needed(size) > 0
        predictions = self._predictions
        for step in self._concessions(claim, others, crowded):
            step()
            victims = self._unneeded(size)
            if victims and claim.prefill and self._should_wait(victims, size):
                # Before it takes what is warm, it takes what is only predicted of others.
                victims = self._victims(size, partial(predictions.protects, of=claim.consumer))
                if not claim.starving and self._should_wait(victims, size):
                    return None
            if crowded and not (full or victims) and claim.prefill and not claim.starving:
                return None
            if victims or not full:
                claim.evictions += len(victims)
                return self._enter(key, layout, size, victims, claim=claim)
        if claim.starving and (victims := self._victims(size, predictions.pins) or self._victims(size)):
            # It must go on, even at the cost of what it needs itself later, or of what is pinned.
            claim.evictions += len(victims)
            return self._enter(key, layout, size, victims, claim=claim)
        return None

    def reserve_ahead(self, key: ExpertKey, layout: RecordLayout, cause: Cause) -> Entry | None:
        """A slot for what is not asked for yet: evicts nothing that is held or predicted.

        For what a prefill has announced it evicts no more than a prefill may.
        """
        announced = cause is Cause.ANNOUNCEMENT
        size = SlotArena.slot_nbytes(layout.nbytes)
        victims = self._victims(size, self._predictions.protects)
        if not victims and self._needed(size) > 0:
            return None
        if announced and victims and self._should_wait(victims, size):
            return None
        return self._enter(key, layout, size, victims, cause=cause, cold=announced)

    @property
    def pinnable_nbytes(self) -> int:
        """Bytes that may be pinned: two slots never, unless everything fits."""
        return self.capacity - self.minimum if self.capacity < self.total_bytes else self.capacity

    def reserve_warm(self, key: ExpertKey) -> Entry | None:
        """A slot for an expert that is worth having: a free one, or that of an expert which no decode step has used.

        What is pinned takes the place of any other that is not held, predicted or worth having.
        """
        layout = self._layouts[key]
        size = SlotArena.slot_nbytes(layout.nbytes)
        predictions, full = self._predictions, self.arena.shortage(size) > 0
        # Nobody waits for it: it may well wait for new memory.
        victims = (
            self._victims(
                size,
                lambda one: predictions.protects(one) or predictions.is_worth_having(one),
                only_cold=not predictions.pins(key),
            )
            if full
            else []
        )
        if full and not victims:
            return None
        return self._enter(key, layout, size, victims, cause=Cause.WARMING, cold=True)

    def complete(self, entry: Entry, tensors: tuple[torch.Tensor, ...]) -> None:
        """An entry has been read."""
        del self.loading[entry.key]
        entry.tensors = tensors
        entry.loaded = True
        self.loaded[entry.key] = entry
        self.by_bank.put(entry.key, entry)
        if entry.key in self._pinned.keys:
            self._pinned.set_aside(entry)
        else:
            self.policy.insert(entry.key, entry.slot.nbytes, cold=entry.cold)

    def abandon(self, entry: Entry) -> None:
        """An entry could not be read: as if it had never been asked for."""
        del self.loading[entry.key]
        entry.cold = False
        self._count_unclaimed(-entry.unclaimed)
        self.arena.release(entry.slot)

    def expect_use(self, expected: Mapping[ExpertKey, float]) -> None:
        """Tells a policy that goes by it how often each expert is used per token."""
        self.tell_hits()
        if isinstance(self.policy, TrustPolicy):
            self.policy.expect(expected)

    def untold(self) -> Counter[Cause]:
        """How many unclaimed experts have been used of which the policy has not heard yet: they count from now on."""
        hits = (batch for batch in tuple(self._holds.journal) if not isinstance(batch, PromptUse))
        used = {entry for batch in hits for entry in batch if entry.unclaimed}
        return Counter(entry.cause for entry in used)

    def held(self) -> set[ExpertKey]:
        """What must stay because a lease or a hold has it."""
        entries = (*self.loaded.values(), *self.loading.values())
        return self._holds.keys() | {entry.key for entry in entries if entry.holders}

    def close(self, *, discard: bool) -> None:
        """Forgets everything and lets go of the memory.

        Args:
            discard: Free it at once, if nothing is held.
        """
        discard = discard and not self.held()
        for key in self.loaded:
            self.by_bank.put(key, None)
        self.loaded.clear()
        self.loading.clear()
        self._colds.clear()
        self._pinned.aside.clear()
        self._holds.journal.clear()
        self.arena.close(discard=discard)

    def resize(self, capacity: int) -> bool:
        """Changes what experts may take. What is too much then leaves in the policy's order, pinned ones last.

        Returns:
            Whether no more than that is in use now: what is held, or on its way, stays until it is not.
        """
        self._asked = capacity
        self._may_evict = self._asked < self.total_bytes
        self._count_unclaimed(0)
        self.settle()
        predictions = self._predictions
        for spares in (predictions.protects, predictions.pins, None):
            self._shrink(spares)
        self.arena.resize(self.capacity)
        return self.arena.shortage(0) <= 0

    def _shrink(self, is_spared: Callable[[ExpertKey], bool] | None) -> None:
        """Evicts what is too much, or as much of it as may leave."""
        held, loaded = self._holds.keys(), self.loaded

        def may_leave(key: ExpertKey) -> bool:
            if loaded[key].holders or key in held:
                return False
            return is_spared is None or not is_spared(key)

        # A policy names none if all that may leave are not enough.
        free = sum(entry.slot.nbytes for key, entry in loaded.items() if may_leave(key))
        needed = min(self.arena.in_use + self.arena.growing - self.capacity, free)
        victims = self._chosen(needed, may_leave, is_spared) if needed > 0 else ()
        for key in victims:
            self._evict(key)

    @property
    def is_full(self) -> bool:
        """Whether something may have to leave before another record fits."""
        return self._needed(self._largest) > 0

    def slot_nbytes(self, key: ExpertKey) -> int:
        """Bytes of the slot of a key that the source is known to have."""
        return SlotArena.slot_nbytes(self._layouts[key].nbytes)

    @property
    def room(self) -> int:
        """Bytes that experts can take without waiting for new memory, where that is slow; else the capacity."""
        return self.arena.committed - self.arena.growing if self._grows_apart else self.capacity

    def prefill_depth(self, size: int) -> int:
        """Records of that many bytes that a prefill may have read ahead: it may push an eighth of the arena out."""
        return max(1, min(self.capacity // TURNED_OVER, self.room // 2) // size)

    def _should_wait(self, victims: Sequence[ExpertKey], size: int) -> bool:
        """Whether a prefill that reads ahead is to wait for its own slots, rather than take one that is warm."""
        if all(self.loaded[key].cold for key in victims):
            return False
        return len(self._colds) > self.prefill_depth(size)

    def _unneeded(self, size: int) -> list[ExpertKey]:
        """Victims for what is asked for: those that are predicted last, and none that is pinned."""
        predictions = self._predictions
        if predictions.idle:
            return self._victims(size)
        return self._victims(size, predictions.protects) or self._victims(size, predictions.pins)

    @staticmethod
    def _concessions(claim: Claim, others: Sequence[Claim], full: bool) -> Iterator[Callable[[], None]]:
        # The first costs nobody anything.
        yield claim.relinquish if claim.prefill and full else lambda: None
        if not claim.together:
            yield claim.relinquish
        for other in others:
            if not other.together:
                yield other.relinquish
        for other in (claim, *others):
            if other.ordered and other.starving and not other.together:
                yield other.revoke

    def _victims(
        self, size: int, is_spared: Callable[[ExpertKey], bool] | None = None, *, only_cold: bool = False
    ) -> list[ExpertKey]:
        needed = self._needed(size)
        if needed <= 0:
            return []
        loaded, held = self.loaded, self._holds.keys()

        def may_leave(key: ExpertKey) -> bool:
            entry = loaded[key]
            if entry.holders or key in held or (only_cold and not entry.cold):
                return False
            return is_spared is None or not is_spared(key)

        return self._chosen(needed, may_leave, is_spared)

    def _chosen(
        self,
        needed: int,
        may_leave: Callable[[ExpertKey], bool],
        is_spared: Callable[[ExpertKey], bool] | None,
    ) -> list[ExpertKey]:
        found = self.policy.victims(needed, may_leave)
        if found or is_spared is not None or not self._pinned.aside:
            return found
        return self._pinned.among(needed, may_leave)

    @property
    def _grows_apart(self) -> bool:
        return self.growth.is_slow and self._asked < self.total_bytes and self.growth.apart

    def _needed(self, size: int) -> int:
        """Bytes that must leave before a record of that size can be read, without waiting for slow new memory."""
        return self.arena.shortage_of_memory(size) if self._grows_apart else self.arena.shortage(size)

    def _count_unclaimed(self, change: int) -> None:
        self._unclaimed += change
        self._holds.uses_matter = self._may_evict or self._unclaimed > 0

    def _enter(
        self,
        key: ExpertKey,
        layout: RecordLayout,
        size: int,
        victims: Sequence[ExpertKey],
        *,
        cause: Cause = Cause.DEMAND,
        claim: Claim | None = None,
        cold: bool = False,
    ) -> Entry:
        could_grow, new_slots = self.arena.shortage(size) <= 0, self.arena.new_slots
        for victim in victims:
            self._evict(victim)
        slot = self.arena.acquire(size)
        if slot is None:
            raise UsageError("The eviction policy freed less than it was asked for.", expected=size)
        if victims and could_grow:
            self.growth.owe(size)
        elif self.arena.new_slots > new_slots and self._asked < self.total_bytes:
            self.growth.taken(size)
        self._counters.issued[cause] += 1
        self._count_unclaimed(cause is not Cause.DEMAND)
        entry = self.loading[key] = Entry(key, layout, slot, cause=cause, reader=claim, cold=cold, colds=self._colds)
        return entry

    def _evict(self, key: ExpertKey) -> None:
        entry = self.loaded.pop(key)
        if entry.holders or key in self._holds.keys():
            self.loaded[key] = entry
            raise UsageError(f"The eviction policy names expert {key}, which is in use.", key=key)
        self.by_bank.put(key, None)
        entry.cold = False
        if self._pinned.aside.pop(key, None) is None:
            self.policy.remove(key)
        self.arena.release(entry.slot)
        self._counters.evictions += 1
        if entry.unclaimed:
            self._count_unclaimed(-1)
            self._counters.wasted[entry.cause] += 1
