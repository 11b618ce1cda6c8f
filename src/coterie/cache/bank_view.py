"""The experts of one bank by id: the fast way for a decode step, which asks for a few of them in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.cache.by_bank import ByBank
from coterie.cache.consumer import Consumer
from coterie.cache.lease import Held
from coterie.cache.scheduler import Scheduler
from coterie.native import Addresses, Library
from coterie.spec import BankKey, RecordLayout


class BankView:
    """The experts of one bank by id. Made by :meth:`ExpertCache.view`.

    Ids instead of keys, and a list instead of a table: between two layers of a large model the processor's caches
    forget everything, so what counts is how many objects are touched.

    Args:
        scheduler: The cache's.
        by_bank: What is resident.
        bank: The bank.
        experts: E, how many it has.
    """

    __slots__ = ("_bank", "_by_bank", "_entries", "_scheduler")

    def __init__(self, scheduler: Scheduler, by_bank: ByBank, bank: BankKey, experts: int) -> None:
        self._scheduler = scheduler
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
        scheduler = self._scheduler
        if not scheduler.usable:
            scheduler.check_usable()
        resident = self._entries
        held = Held(scheduler, consumer)
        with scheduler.lock:
            entries = [entry for expert in experts if (entry := resident[expert]) is not None]
            if len(entries) < len(experts):
                return None
            held.take(entries)
        return held

    def addresses(self, library: Library, layout: RecordLayout) -> Addresses:
        """Where the experts are, for native calls that look for themselves; kept in step by the cache.

        Such a call is no hold of the cache's: before it, :meth:`turn` is called, and after it :meth:`note`.

        Args:
            library: The native library.
            layout: Records of another layout are left out.
        """
        addresses = Addresses(library, len(self._entries))
        with self._scheduler.lock:
            self._by_bank.publish(self._bank, layout, addresses)
        return addresses

    def turn(self, consumer: Consumer) -> None:
        """A consumer comes to the bank: what was predicted of it is over.

        Raises:
            UsageError: If the cache is closed.
        """
        scheduler = self._scheduler
        if not scheduler.usable:
            scheduler.check_usable()
        scheduler.came(consumer)

    def note(self, experts: Sequence[int]) -> None:
        """Experts were found resident and used, by a call that looked for them itself. Counts as hits."""
        scheduler, resident = self._scheduler, self._entries
        with scheduler.lock:
            # One may have left since.
            scheduler.count_hits(len(experts), (entry for expert in experts if (entry := resident[expert]) is not None))
