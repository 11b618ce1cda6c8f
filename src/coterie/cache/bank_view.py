"""The experts of banks by id, and who holds them: the fast way for a decode step, which asks for a few in every layer.

Between two layers of a large model the processor's caches forget everything, so what counts is how many objects are
touched: ids instead of keys, a list instead of a table, and one table of holds instead of a mark on each expert.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from coterie.cache.claims import Entry, OpenClaims, Tensors
from coterie.cache.consumer import Consumer
from coterie.cache.guard import Guard
from coterie.cache.predictions import Predictions
from coterie.cache.statistics import Counters
from coterie.eviction import PromptUse
from coterie.native import Addresses, Library
from coterie.spec import BankKey, ExpertKey

JOURNAL_LIMIT = 256
"""Leases and holds whose hits the policy may not have been told about yet."""


class Holds:
    """What is held by decode steps that found all they need, and the hits of decoding; guarded by the cache's lock.

    Args:
        guard: The cache's lock.
        predictions: One is over when its consumer holds something.
        claims: The leases that are open: a hold that ends may make room for one.
        counters: Where hits are counted.

    Attributes:
        guard: That given.
        predictions: Those given.
        held: What must stay together until it is given up: token → (consumer, entries).
        uses_matter: Whether anybody will ask which requests were hits.
        journal: What the policy has not been told of yet, in order: these hits, and what prompts used.
        wake: Called when a hold has ended while leases are open.
        notify: Called when the journal is long.
    """

    def __init__(self, guard: Guard, predictions: Predictions, claims: OpenClaims, counters: Counters) -> None:
        self.guard = guard
        self.predictions = predictions
        self._claims = claims
        self._counters = counters
        self.held: dict[object, tuple[Consumer | None, Sequence[Entry]]] = {}
        self.uses_matter = False
        self.journal: deque[Sequence[Entry] | PromptUse[ExpertKey]] = deque()
        self.wake: Callable[[], None] = _nothing
        self.notify: Callable[[], None] = _nothing

    def begin(self, token: object, consumer: Consumer, entries: Sequence[Entry]) -> None:
        """A consumer holds entries that are resident, until it lets go of the token: these are hits. Needs the lock."""
        self.held[token] = (consumer, entries)
        if self.predictions.made:
            self.predictions.asked(consumer)
        self._counters.hits += len(entries)
        if self.uses_matter:
            self.note(entries)

    def end(self, token: object, consumer: Consumer) -> None:
        """Gives up a consumer's hold, as soon as it says so. Harmless when repeated."""
        if self.guard.forked:
            return
        with self.guard.lock:
            if not consumer.reads_on:
                self._let_go(token)
                return
            # It stays for a while, but its consumer may hold other things: even if its device fails.
            if (held := self.held.get(token)) is not None:
                self.held[token] = (None, held[1])
            consumer.fence(partial(self._let_go, token))

    def _let_go(self, token: object) -> None:
        if self.guard.forked:
            return
        with self.guard.lock:
            self.held.pop(token, None)
            if self._claims.open:
                self.wake()

    def note(self, uses: Sequence[Entry] | PromptUse[ExpertKey]) -> None:
        """Remembers uses, where they matter; the reading threads tell the policy. Needs the lock."""
        self.journal.append(uses)
        if len(self.journal) > JOURNAL_LIMIT:
            self.notify()

    def count(self, hits: int) -> None:
        """So many requests were hits. Needs the lock."""
        self._counters.hits += hits

    def one_of(self, consumer: Consumer) -> bool:
        """Whether a consumer has a hold."""
        return any(holder is consumer for holder, _ in self._now_held())

    def keys(self) -> set[ExpertKey]:
        """What is held."""
        return {entry.key for _, entries in self._now_held() for entry in entries}

    def _now_held(self) -> list[tuple[Consumer | None, Sequence[Entry]]]:
        # Collecting a lost hold can change the table at any moment: see OpenClaims.
        return list(self.held.values())


class Held:
    """Experts that are all resident and stay so until released. Made by :meth:`BankView.try_hold`.

    Attributes:
        tensors: The experts' tensors, in the order of the ids asked for.
    """

    __slots__ = ("_consumer", "_holds", "_token", "tensors")

    def __init__(self, holds: Holds, consumer: Consumer) -> None:
        self._holds = holds
        self._consumer = consumer
        self._token: object = None
        self.tensors: list[Tensors] = []

    def take(self, entries: Sequence[Entry]) -> None:
        """Holds entries that are resident. Needs the cache's lock."""
        # The hold knows of its token before the cache does: an interrupt in between then loses nothing.
        token = self._token = object()
        self._holds.begin(token, self._consumer, entries)
        self.tensors = [entry.tensors for entry in entries]

    def release(self) -> None:
        """Gives the experts up. Harmless when repeated; the context does it by itself."""
        if self._token is not None:
            self._holds.end(self._token, self._consumer)
            self._token = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_token", None) is not None:
            with contextlib.suppress(Exception):
                self.release()


class ByBank:
    """Lists of the resident experts of banks, kept in step with the table; guarded by the cache's lock.

    Args:
        loaded: The table.
    """

    def __init__(self, loaded: Mapping[ExpertKey, Entry]) -> None:
        self._loaded = loaded
        # By bank: the key of an expert begins with that of its bank.
        self._lists: dict[tuple[str, int, str], list[Entry | None]] = {}
        # The same for native calls: a table for the records of each layout that somebody has asked for.
        self._addresses: dict[tuple[str, int, str], Addresses] = {}

    def list_of(self, bank: BankKey, experts: int) -> list[Entry | None]:
        """What is resident of a bank, by expert id: a list that is kept in step."""
        found = self._lists.get(bank)
        if found is None:
            found = self._lists[bank] = [self._loaded.get(bank.expert(expert)) for expert in range(experts)]
        return found

    def addresses_of(self, bank: BankKey, make: Callable[[], Addresses]) -> Addresses:
        """Where a bank's records are: one table, kept in step, whoever asks and however often.

        Args:
            bank: The bank.
            make: Makes an empty table.
        """
        addresses = self._addresses.get(bank)
        if addresses is None:
            addresses = self._addresses[bank] = make()
            for key, entry in self._loaded.items():
                if key.bank_key == bank:
                    _publish(addresses, entry)
        return addresses

    def put(self, key: ExpertKey, entry: Entry | None) -> None:
        """An expert has become resident, or has left."""
        bank = key[:3]
        listed = self._lists.get(bank)
        if listed is not None:
            listed[key.expert] = entry
        addresses = self._addresses.get(bank)
        if addresses is None:
            return
        if entry is None:
            addresses.withdraw(key.expert)
        else:
            _publish(addresses, entry)

    def names(self) -> dict[BankKey, tuple[ExpertKey | None, ...]]:
        """What each list names, by expert id."""
        return {
            BankKey(*bank): tuple(None if entry is None else entry.key for entry in listed)
            for bank, listed in self._lists.items()
        }


class BankView:
    """The experts of one bank by id. Made by :meth:`ExpertCache.view`.

    Args:
        holds: What is held.
        by_bank: What is resident.
        bank: The bank.
        experts: E, how many it has.
    """

    __slots__ = ("_bank", "_by_bank", "_entries", "_holds")

    def __init__(self, holds: Holds, by_bank: ByBank, bank: BankKey, experts: int) -> None:
        self._holds = holds
        self._by_bank = by_bank
        self._bank = bank
        # By expert id; None where an expert is not resident.
        self._entries = by_bank.list_of(bank, experts)

    def try_hold(self, experts: Sequence[int], consumer: Consumer) -> Held | None:
        """Holds experts if all of them are resident; otherwise does nothing and returns None.

        It never waits. Counts as hits; a failed try counts as nothing.

        Args:
            experts: Ids from 0 to E - 1.
            consumer: Who computes with them.

        Raises:
            UsageError: If the cache is closed.
        """
        holds, resident = self._holds, self._entries
        if not holds.guard.usable:
            holds.guard.check()
        held = Held(holds, consumer)
        with holds.guard.lock:
            entries = [entry for expert in experts if (entry := resident[expert]) is not None]
            if len(entries) < len(experts):
                return None
            held.take(entries)
        return held

    def addresses(self, library: Library) -> Addresses:
        """Where the experts are, for native calls that look for themselves; kept in step by the cache.

        Such a call is no hold of the cache's: before it, :meth:`asked` is called, and after it :meth:`note`.

        Args:
            library: The native library.

        Raises:
            UsageError: If the cache is closed.
        """
        if not self._holds.guard.usable:
            self._holds.guard.check()
        with self._holds.guard.lock:
            return self._by_bank.addresses_of(self._bank, lambda: Addresses(library, len(self._entries)))

    def resident(self) -> list[int]:
        """Ids of the experts that are resident, in order, as somebody sees it who only looks: nobody waits for that."""
        return [expert for expert, entry in enumerate(self._entries) if entry is not None]

    def asked(self, consumer: Consumer) -> None:
        """A consumer asks for experts without a hold: what was predicted of this request is over.

        Raises:
            UsageError: If the cache is closed.
        """
        holds = self._holds
        if not holds.guard.usable:
            holds.guard.check()
        if holds.predictions.made:
            with holds.guard.lock:
                holds.predictions.asked(consumer)

    def note(self, experts: Sequence[int]) -> None:
        """Experts were found resident and used, by a call that looked for them itself. Counts as hits."""
        holds, resident = self._holds, self._entries
        with holds.guard.lock:
            holds.count(len(experts))
            if holds.uses_matter:
                # One may have left since.
                holds.note([entry for expert in experts if (entry := resident[expert]) is not None])


def _publish(addresses: Addresses, entry: Entry) -> None:
    addresses.publish(entry.key.expert, entry.tensors[0].data_ptr() - entry.layout.fields[0].offset)


def _nothing() -> None:
    """Until the cache reads."""
