"""Which experts are in memory: the table, the policy and the arena, kept in step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch

from coterie.cache.arena import SlotArena
from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry
from coterie.cache.growth import Growth, native_touch
from coterie.cache.statistics import Counters
from coterie.cache.warm_set import WarmSet
from coterie.errors import ExpertMissingError, MemoryBudgetError, UsageError
from coterie.eviction import EvictionPolicy
from coterie.native import Berths
from coterie.spec import BankKey, ExpertKey, ExpertSource, RecordLayout, format_bytes

Journal = deque[Sequence[Entry]]


class Residency:
    """The experts that have a slot, within a byte budget.

    Everything here runs under the cache's lock. What takes several steps (evicting, inserting) runs on the reading
    threads only, which no KeyboardInterrupt can strike; consumers merely look up, hold and note hits in a journal.

    Args:
        source: Where layouts come from.
        capacity: Bytes asked for.
        policy: Chooses victims.

    Attributes:
        policy: The same.
        warm: What is worth having, and what is pinned.
        growth: Whether reads wait for new memory.

    Raises:
        MemoryBudgetError: If the capacity is below :attr:`minimum`.
    """

    def __init__(self, source: ExpertSource, capacity: int, policy: EvictionPolicy[ExpertKey]) -> None:
        self._source = source
        self._layouts = {key: source.layout(key) for key in source.keys()}
        sizes = [SlotArena.slot_nbytes(layout.nbytes) for layout in self._layouts.values()]
        self.total_bytes = sum(sizes)
        self._largest = max(sizes, default=0)
        self._asked = capacity
        self.policy = policy
        self.counters = Counters()
        self.loaded: dict[ExpertKey, Entry] = {}
        self.loading: dict[ExpertKey, Entry] = {}
        # The same as in ``loaded``, by bank and id.
        self._shelves: dict[BankKey, list[Entry | None]] = {}
        # The same for native calls, of the records of one layout.
        self._berths: dict[BankKey, tuple[Berths, RecordLayout]] = {}
        # What must stay together until it is given up: token → (thread, entries). A decode step makes and drops one
        # for every layer, which is why this is not written to each entry.
        self.holds: dict[object, tuple[int, Sequence[Entry]]] = {}
        # Hits of decoding, in order, not yet told to the policy.
        self.journal: Journal = deque()
        # Whether anybody will ask about uses: not while everything fits and nothing is warmed.
        self.uses_matter = capacity < self.total_bytes
        # Thread → what it will probably ask for next.
        self.expected: dict[int, frozenset[ExpertKey]] = {}
        self.warm = WarmSet()
        if capacity < self.minimum:
            raise MemoryBudgetError(
                f"{format_bytes(capacity)} for experts is too little: two of the largest must fit, "
                f"which takes {format_bytes(self.minimum)}.",
                advice=f"Give at least {self.minimum} bytes of expert memory.",
                budget=capacity,
                minimum=self.minimum,
            )
        self.arena = SlotArena(self.capacity)
        self.growth = Growth(self.arena, native_touch(), waited=lambda: self.counters.wait_s)

    @property
    def minimum(self) -> int:
        """The least capacity in bytes: two slots of the largest record, or all records where they take less."""
        return min(2 * self._largest, self.total_bytes)

    @property
    def capacity(self) -> int:
        """Bytes that experts may take: what was asked for, but no more than all records have."""
        return min(self._asked, self.total_bytes)

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
        self.uses_matter = self.uses_matter or self._asked < self.total_bytes
        return layout

    def has(self, key: ExpertKey) -> bool:
        """Whether the source has this key, as far as is known without asking it."""
        return key in self._layouts

    def find(self, key: ExpertKey) -> Entry | None:
        """The entry of a key that is resident or on its way."""
        return self.loaded.get(key) or self.loading.get(key)

    def shelf(self, bank: BankKey, experts: int) -> list[Entry | None]:
        """What is resident of a bank, by expert id: a list that is kept in step with ``loaded``."""
        shelf = self._shelves.get(bank)
        if shelf is None:
            shelf = self._shelves[bank] = [self.loaded.get(bank.expert(expert)) for expert in range(experts)]
        return shelf

    def moor(self, bank: BankKey, layout: RecordLayout, berths: Berths) -> None:
        """Keeps berths in step with what is resident of a bank's records of a layout."""
        self._berths[bank] = (berths, layout)
        for key, entry in self.loaded.items():
            if key.bank_key == bank:
                self._shelve(key, entry)

    def note_use(self, entry: Entry) -> None:
        """Somebody asked for an entry: if it was read before that, this was right."""
        if entry.unclaimed:
            entry.unclaimed = False
            self.counters.used[entry.cause] += 1
            self.counters.in_time[entry.cause] += entry.loaded

    def settle(self) -> None:
        """Tells the policy about the hits in the journal."""
        journal = self.journal
        while journal:
            for entry in journal.popleft():
                # It may have left since: hits are told late, and a hold may have ended in between.
                if self.loaded.get(entry.key) is entry:
                    entry.cold = False
                    self.policy.hit(entry.key)
                    if entry.unclaimed:
                        self.note_use(entry)

    def reserve(self, key: ExpertKey, layout: RecordLayout, claim: Claim, others: Sequence[Claim]) -> Entry | None:
        """A slot for a key that a claim needs, or None while everything is held.

        What may go, in this order: free slots; unheld experts in the policy's order, expected ones last; what this
        claim has consumed; what other claims have consumed; what waiting claims hold but cannot use yet; what is
        pinned. A scan gives up what it has consumed first. Where new memory is slow, it is taken after unheld experts,
        and by a scan only when its consumer waits.
        """
        size = SlotArena.slot_nbytes(layout.nbytes)
        full, crowded = self.arena.shortage(size) > 0, self._needed(size) > 0
        for step in self._concessions(claim, others, crowded):
            step()
            victims = self._victims(size, *self._spared()) or self._victims(size, self.warm.pinned)
            if victims and claim.prefill and self._should_wait(victims, size):
                # Before it takes what is warm, it takes what others only guess.
                victims = self._victims(size, self.expected.get(claim.thread, frozenset()), self.warm.pinned)
                if not claim.starving and self._should_wait(victims, size):
                    return None
            if crowded and not (full or victims) and claim.prefill and not claim.starving:
                return None
            if victims or not full:
                claim.evictions += len(victims)
                return self._enter(key, layout, size, victims, claim=claim)
        if claim.starving and (victims := self._victims(size, self.warm.pinned) or self._victims(size)):
            # It must go on, even at the cost of what it needs itself later, or of what is pinned.
            claim.evictions += len(victims)
            return self._enter(key, layout, size, victims, claim=claim)
        return None

    def reserve_ahead(self, key: ExpertKey, layout: RecordLayout, cause: Cause) -> Entry | None:
        """A slot for what is not asked for yet: evicts nothing that is held or expected.

        For what a scan has announced it evicts no more than a scan may.
        """
        announced = cause is Cause.ANNOUNCEMENT
        size = SlotArena.slot_nbytes(layout.nbytes)
        victims = self._victims(size, *self._spared())
        if not victims and self._needed(size) > 0:
            return None
        if announced and victims and self._should_wait(victims, size):
            return None
        return self._enter(key, layout, size, victims, cause=cause, cold=announced)

    def warm_up(self, keys: Iterable[ExpertKey], share: float, pinned_nbytes: int) -> None:
        """Says what is worth having, most valuable first, and how much of that is to stay."""
        self.uses_matter = True
        room = self.capacity - self.minimum if self.capacity < self.total_bytes else self.capacity
        self.warm.replace(
            keys, self.slot_nbytes, nbytes=int(share * self.capacity), pinned_nbytes=min(pinned_nbytes, room)
        )

    def reserve_warm(self, key: ExpertKey) -> Entry | None:
        """A slot for an expert that is worth having: a free one, or that of an expert which no decode step has used.

        What is pinned takes the place of any other that is not held, guessed or worth having.
        """
        layout = self._layouts[key]
        size = SlotArena.slot_nbytes(layout.nbytes)
        members, pinned = self.warm.members, key in self.warm.pinned
        full = self.arena.shortage(size) > 0
        # Nobody waits for it: it may well wait for new memory.
        victims = self._victims(size, *self._spared(), members, only_cold=not pinned) if full else []
        if full and not victims:
            return None
        return self._enter(key, layout, size, victims, cause=Cause.WARMING, cold=True)

    def complete(self, entry: Entry, tensors: tuple[torch.Tensor, ...]) -> None:
        """An entry has been read."""
        del self.loading[entry.key]
        entry.tensors = tensors
        entry.loaded = True
        self.loaded[entry.key] = entry
        self._shelve(entry.key, entry)
        self.policy.insert(entry.key, entry.slot.nbytes, cold=entry.cold)

    def abandon(self, entry: Entry) -> None:
        """An entry could not be read: as if it had never been asked for."""
        del self.loading[entry.key]
        self.arena.release(entry.slot)

    def held(self) -> set[ExpertKey]:
        """What must stay because a lease or a hold has it."""
        entries = (*self.loaded.values(), *self.loading.values())
        return self._held() | {entry.key for entry in entries if entry.holders}

    def shelved(self) -> dict[BankKey, tuple[ExpertKey | None, ...]]:
        """What each shelf names, by expert id."""
        return {
            bank: tuple(None if entry is None else entry.key for entry in shelf)
            for bank, shelf in self._shelves.items()
        }

    def ranked(self) -> frozenset[ExpertKey]:
        """What the policy names when everything is to leave."""
        total = sum(entry.slot.nbytes for entry in self.loaded.values())
        return frozenset(self.policy.victims(total, lambda key: True)) if total else frozenset()

    def close(self, *, discard: bool) -> None:
        """Forgets everything and lets go of the memory."""
        for key in self.loaded:
            self._shelve(key, None)
        self.loaded.clear()
        self.loading.clear()
        self.journal.clear()
        self.expected.clear()
        self.warm.clear()
        self.arena.close(discard=discard)

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

    def scan_depth(self, size: int) -> int:
        """Records of that many bytes that a scan may have read ahead: it may push an eighth of the arena out."""
        return max(1, min(self.capacity // 8, self.room // 2) // size)

    def _should_wait(self, victims: Sequence[ExpertKey], size: int) -> bool:
        """Whether a scan that reads ahead is to wait for its own slots, rather than take one that is warm."""
        if all(self.loaded[key].cold for key in victims):
            return False
        entries = (*self.loaded.values(), *self.loading.values())
        return sum(entry.cold for entry in entries) > self.scan_depth(size)

    @staticmethod
    def _concessions(claim: Claim, others: Sequence[Claim], full: bool) -> Iterator[Callable[[], None]]:
        yield claim.relinquish if claim.prefill and full else _nothing
        if not claim.together:
            yield claim.relinquish
        for other in others:
            if not other.together:
                yield other.relinquish
        for other in (claim, *others):
            if other.ordered and other.starving and not other.together:
                yield other.revoke

    def _spared(self) -> Sequence[Collection[ExpertKey]]:
        """What leaves last: what is guessed, and what is pinned."""
        return (*self.expected.values(), self.warm.pinned)

    def _victims(self, size: int, *spared: Collection[ExpertKey], only_cold: bool = False) -> list[ExpertKey]:
        needed = self._needed(size)
        if needed <= 0:
            return []
        loaded, taken = self.loaded, [one for one in (self._held(), *spared) if one]
        return self.policy.victims(
            needed,
            lambda key: (
                not loaded[key].holders and not any(key in one for one in taken) and (loaded[key].cold or not only_cold)
            ),
        )

    @property
    def _grows_apart(self) -> bool:
        return self._asked < self.total_bytes and self.growth.apart

    def _needed(self, size: int) -> int:
        """Bytes that must leave before a record of that size can be read, without waiting for slow new memory."""
        return self.arena.shortage_of_memory(size) if self._grows_apart else self.arena.shortage(size)

    def _held(self) -> set[ExpertKey]:
        return {entry.key for _, entries in self.holds.values() for entry in entries}

    def _shelve(self, key: ExpertKey, entry: Entry | None) -> None:
        shelf = self._shelves.get(key.bank_key)
        if shelf is not None:
            shelf[key.expert] = entry
        berths, layout = self._berths.get(key.bank_key, (None, None))
        if berths is None:
            return
        if entry is None:
            berths.clear(key.expert)
        elif entry.layout == layout:
            berths.fill(key.expert, entry.tensors[0].data_ptr() - entry.layout.fields[0].offset)

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
        self.counters.issued[cause] += 1
        entry = self.loading[key] = Entry(key, layout, slot, cause=cause, reader=claim, cold=cold)
        return entry

    def _evict(self, key: ExpertKey) -> None:
        entry = self.loaded.pop(key)
        if entry.holders or key in self._held():
            self.loaded[key] = entry
            raise UsageError(f"The eviction policy names expert {key}, which is in use.", key=key)
        self._shelve(key, None)
        self.policy.remove(key)
        self.arena.release(entry.slot)
        self.counters.evictions += 1
        if entry.unclaimed:
            self.counters.wasted[entry.cause] += 1


def _nothing() -> None:
    """The concession that costs nobody anything."""
