"""Least frequently used, with dynamic ageing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from coterie.eviction.protocol import K
from coterie.eviction.ranking import Ranking
from coterie.eviction.selection import take_until


class LfuPolicy(Generic[K]):
    """Evicts the lowest priority; ties by age.

    The ageing rule is LFU-DA (Arlitt, Cherkasova, Dilley, Friedrich, Jin: "Evaluating content management techniques
    for Web proxy caches", 2000): a record's priority is ``uses + L`` at its last use, where the cache's age L is the
    highest priority evicted so far. A new record starts level with those that are about to leave, so that experts
    that were popular in an earlier text do not stay for ever. ``uses`` counts since the record became resident.

    A cold insertion has priority 0, below everything, until it is used.
    """

    def __init__(self) -> None:
        self._ranking: Ranking[K] = Ranking()
        self._sizes: dict[K, int] = {}
        self._uses: dict[K, int] = {}
        self._age = 0

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes[key] = nbytes
        if cold:
            self._uses[key] = 0
            self._ranking.place_first(key)
        else:
            self._uses[key] = 1
            self._ranking.place(key, self._age + 1)

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        uses = self._uses[key] + 1
        self._uses[key] = uses
        self._ranking.place(key, self._age + uses)

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        del self._sizes[key], self._uses[key]
        self._age = max(self._age, self._ranking.discard(key))

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        return take_until(self._ranking, self._sizes, needed_bytes, is_evictable)
