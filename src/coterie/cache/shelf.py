"""The experts of one bank by id: the fast way for a decode step, which asks for a few of them in every layer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from coterie.cache.claims import Entry
from coterie.cache.lease import Held
from coterie.cache.scheduler import Scheduler
from coterie.native import Berths, Library
from coterie.spec import BankKey, RecordLayout


class Shelf:
    """The experts of one bank by id. Made by :meth:`ExpertCache.shelf`.

    Ids instead of keys, and a list instead of a table: between two layers of a large model the processor's caches
    forget everything, so what counts is how many objects are touched.

    Args:
        scheduler: The cache's.
        bank: The bank.
        entries: By expert id; None where an expert is not resident. Kept in step by the cache.
    """

    __slots__ = ("_bank", "_entries", "_scheduler")

    def __init__(self, scheduler: Scheduler, bank: BankKey, entries: Sequence[Entry | None]) -> None:
        self._scheduler = scheduler
        self._bank = bank
        self._entries = entries

    def try_hold(self, experts: Sequence[int]) -> Held | None:
        """Holds experts if all of them are resident; otherwise does nothing and returns None.

        It never waits. Counts as hits; a failed try counts as nothing.

        Args:
            experts: Ids from 0 to E - 1.

        Raises:
            UsageError: If the cache is closed.
        """
        scheduler = self._scheduler
        if not scheduler.usable:
            scheduler.check_usable()
        resident = self._entries
        held = Held(scheduler)
        with scheduler.lock:
            entries = [entry for expert in experts if (entry := resident[expert]) is not None]
            if len(entries) < len(experts):
                return None
            held.take(entries)
        return held

    def berths(self, library: Library, layout: RecordLayout) -> Berths:
        """Where the experts are, for native calls that look for themselves; kept in step by the cache.

        Such a call is no hold of the cache's: before it, :meth:`turn` is called, and after it :meth:`note`.

        Args:
            library: The native library.
            layout: Records of another layout are left out.
        """
        berths = Berths(library, len(self._entries))
        with self._scheduler.lock:
            self._scheduler.residency.moor(self._bank, layout, berths)
        return berths

    def turn(self) -> None:
        """This thread comes to the bank: what it was expected to ask for is over.

        Raises:
            UsageError: If the cache is closed.
        """
        scheduler = self._scheduler
        if not scheduler.usable:
            scheduler.check_usable()
        if scheduler.residency.expected:
            with scheduler.lock:
                scheduler.guesses.passed(threading.get_ident())

    def note(self, experts: Sequence[int]) -> None:
        """Experts were found resident and used, by a call that looked for them itself. Counts as hits."""
        scheduler = self._scheduler
        residency, resident = scheduler.residency, self._entries
        with scheduler.lock:
            residency.counters.hits += len(experts)
            if residency.uses_matter:
                # One may have left since.
                scheduler.note_hits([entry for expert in experts if (entry := resident[expert]) is not None])
