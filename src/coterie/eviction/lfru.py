"""Least frequently / recently used: a recent half that is safe, a frequent half that competes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic

from coterie.eviction.protocol import K
from coterie.eviction.ranking import Ranking
from coterie.eviction.selection import take_until


class LfruPolicy(Generic[K]):
    """Two partitions, after LFRU (Bilal and Kang: "A cache management scheme for efficient content eviction and
    replication in cache networks", IEEE Access 5, 2017).

    A new record enters the *unprivileged* partition, where the least frequently used leaves first (ties by age). Its
    next use takes it into the *privileged* one, which is kept in order of recency and holds up to half of the
    resident bytes; what that pushes out falls back among the unprivileged with the frequency it has earned. The
    unprivileged age as in LFU-DA (see :class:`~coterie.eviction.LfuPolicy`). Privileged records leave only when no
    unprivileged one can.

    A cold insertion has frequency 0 and stands before all others; its first use only makes it an ordinary new
    record.
    """  # noqa: D205

    def __init__(self) -> None:
        self._privileged: OrderedDict[K, None] = OrderedDict()
        self._unprivileged: Ranking[K] = Ranking()
        self._sizes: dict[K, int] = {}
        self._uses: dict[K, int] = {}
        self._age = 0
        self._bytes = 0
        self._privileged_bytes = 0

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes[key] = nbytes
        self._bytes += nbytes
        self._uses[key] = 0 if cold else 1
        if cold:
            self._unprivileged.place_first(key)
        else:
            self._unprivileged.place(key, self._age + 1)

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        uses = self._uses[key] + 1
        self._uses[key] = uses
        if key in self._privileged:
            self._privileged.move_to_end(key)
        elif uses == 1:
            self._unprivileged.place(key, self._age + 1)
        else:
            self._unprivileged.discard(key)
            self._privileged[key] = None
            self._privileged_bytes += self._sizes[key]
            self._demote()

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        size = self._sizes.pop(key)
        self._bytes -= size
        del self._uses[key]
        if key in self._privileged:
            del self._privileged[key]
            self._privileged_bytes -= size
        else:
            self._age = max(self._age, self._unprivileged.discard(key))
        self._demote()

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        return take_until(self._order(), self._sizes, needed_bytes, is_evictable)

    def _order(self) -> Iterator[K]:
        yield from self._unprivileged
        yield from self._privileged

    def _demote(self) -> None:
        while 2 * self._privileged_bytes > self._bytes:
            key, _ = self._privileged.popitem(last=False)
            self._privileged_bytes -= self._sizes[key]
            self._unprivileged.place(key, self._age + self._uses[key])
