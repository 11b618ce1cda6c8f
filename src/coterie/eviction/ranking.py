"""Keys in buckets of equal integer priority: the data structure behind the frequency policies."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic

from coterie.eviction.protocol import K


class Ranking(Generic[K]):
    """Keys ordered by priority, and by age within one priority.

    Moving a key costs constant time, plus a heap push when its new priority is a new one.
    """

    def __init__(self) -> None:
        self._priority: dict[K, int] = {}
        self._buckets: dict[int, OrderedDict[K, None]] = {}
        # Priorities that have had a bucket; emptied ones stay until they surface.
        self._heap: list[int] = []

    def __contains__(self, key: K) -> bool:
        return key in self._priority

    def place(self, key: K, priority: int) -> None:
        """Adds a key, or moves it, to the young end of its priority."""
        if key in self._priority:
            self.discard(key)
        bucket = self._buckets.get(priority)
        if bucket is None:
            bucket = self._buckets[priority] = OrderedDict()
            heapq.heappush(self._heap, priority)
        bucket[key] = None
        self._priority[key] = priority

    def place_first(self, key: K) -> None:
        """Adds a key, or moves it, to the very front: priority 0 and the old end of it."""
        self.place(key, 0)
        self._buckets[0].move_to_end(key, last=False)

    def discard(self, key: K) -> int:
        """Removes a key and returns the priority that it had."""
        priority = self._priority.pop(key)
        bucket = self._buckets[priority]
        del bucket[key]
        if not bucket:
            del self._buckets[priority]
        return priority

    def __iter__(self) -> Iterator[K]:
        """Every key, lowest priority first. The ranking must not change meanwhile."""
        heap = self._heap
        while heap and heap[0] not in self._buckets:
            heapq.heappop(heap)
        if not heap:
            return
        # Nearly always the lowest bucket holds a victim, so the others are only sorted when it does not.
        yield from self._buckets[heap[0]]
        for priority in sorted(self._buckets):
            if priority != heap[0]:
                yield from self._buckets[priority]
