"""The experts of one bank by id: the fast way for a decode step, which asks for a few of them in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.cache.claims import Entry
from coterie.cache.lease import Held
from coterie.cache.scheduler import Scheduler


class Shelf:
    """Holds experts of one bank if they are all resident. Made by :meth:`ExpertCache.shelf`.

    Ids instead of keys, and a list instead of a table: between two layers of a large model the processor's caches
    forget everything, so what counts is how many objects are touched.

    Args:
        scheduler: The cache's.
        entries: By expert id; None where an expert is not resident. Kept in step by the cache.
    """

    __slots__ = ("_entries", "_scheduler")

    def __init__(self, scheduler: Scheduler, entries: Sequence[Entry | None]) -> None:
        self._scheduler = scheduler
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
