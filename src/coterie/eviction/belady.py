"""Bounds on what any policy can do: Belady's optimum and the compulsory misses."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from math import inf
from typing import Generic

from coterie.eviction.protocol import K
from coterie.eviction.trace import Group, Outcome, Scope, size_of, split


def belady(
    trace: Iterable[Group[K]], capacity: int, *, sizes: Mapping[K, int] | int = 1, scope: Scope = "global"
) -> Outcome:
    """The offline optimum (Belady: "A study of replacement algorithms", 1966): what is needed last leaves first.

    Records are fetched on demand only, and the members of a group are needed together (see
    :func:`~coterie.eviction.simulate`). With records of one size no policy has more hits. With several sizes the
    optimum is NP-hard (Chrobak, Woeginger, Makino, Xu: "Caching is hard — even in the fault model", 2012); this is
    then a strong reference, not a bound.
    """
    parts = [_replay(part, share, sizes) for part, share in split(trace, capacity, scope)]
    return Outcome.total(parts, policy="belady", scope=scope, capacity=capacity)


def compulsory(
    trace: Iterable[Group[K]], capacity: int, *, sizes: Mapping[K, int] | int = 1, scope: Scope = "global"
) -> Outcome:
    """The bound that no cache of any capacity passes: every record is read once.

    The capacity is only checked and recorded, so that the outcome stands beside the others.
    """
    parts = [_first_uses(part, share, sizes) for part, share in split(trace, capacity, scope)]
    return Outcome.total(parts, policy="compulsory", scope=scope, capacity=capacity)


def _first_uses(groups: list[Group[K]], capacity: int, sizes: Mapping[K, int] | int) -> Outcome:
    requests = sum(len(group.keys) for group in groups)
    distinct = {key for group in groups for key in group.keys}
    return Outcome(
        policy="compulsory",
        scope="global",
        capacity=capacity,
        requests=requests,
        hits=requests - len(distinct),
        misses=len(distinct),
        bytes_read=sum(size_of(sizes, key, capacity) for key in distinct),
        evictions=0,
    )


def _next_uses(groups: list[Group[K]]) -> list[dict[K, float]]:
    """For each group and member, the index of the next group that has it, or infinity."""
    upcoming: dict[K, int] = {}
    following: list[dict[K, float]] = []
    for index in range(len(groups) - 1, -1, -1):
        following.append({key: upcoming.get(key, inf) for key in groups[index].keys})
        upcoming.update(dict.fromkeys(groups[index].keys, index))
    following.reverse()
    return following


class _Optimum(Generic[K]):
    """The resident records of the optimum, and which of them is needed last."""

    def __init__(self, capacity: int, sizes: Mapping[K, int] | int) -> None:
        self._capacity = capacity
        self._sizes = sizes
        self.resident: dict[K, int] = {}
        self._next_use: dict[K, float] = {}
        self._used = 0
        self.evictions = 0
        # Latest next use first, of those that may leave. Entries that no longer say the truth are skipped.
        self._heap: list[tuple[float, int, K]] = []
        self._pushed = 0

    def serve(self, group: Group[K], following: Mapping[K, float]) -> int:
        """Makes the members of a group resident and returns the bytes that had to be read."""
        missing = [key for key in group.keys if key not in self.resident]
        absent = set(missing)
        self._next_use.update(following)
        used = [key for key in group.keys if key not in absent]
        bytes_read = 0
        # Only matters where members make room for each other: what is needed the soonest is loaded last, and so stays.
        for key in sorted(missing, key=following.__getitem__, reverse=True):
            size = size_of(self._sizes, key, self._capacity)
            while self._used + size > self._capacity:
                if group.prefill or not self._heap:
                    self._offer(used)
                    used = []
                self._evict()
            self.resident[key] = size
            self._used += size
            used.append(key)
            bytes_read += size
        self._offer(used)
        return bytes_read

    def _offer(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._pushed += 1
            heapq.heappush(self._heap, (-self._next_use[key], self._pushed, key))

    def _evict(self) -> None:
        if not self._heap:
            return
        negative, _, key = heapq.heappop(self._heap)
        if key in self.resident and self._next_use[key] == -negative:
            self._used -= self.resident.pop(key)
            self.evictions += 1


def _replay(groups: list[Group[K]], capacity: int, sizes: Mapping[K, int] | int) -> Outcome:
    optimum: _Optimum[K] = _Optimum(capacity, sizes)
    requests = hits = bytes_read = 0
    for group, following in zip(groups, _next_uses(groups), strict=True):
        requests += len(group.keys)
        hits += sum(key in optimum.resident for key in group.keys)
        bytes_read += optimum.serve(group, following)
    return Outcome(
        policy="belady",
        scope="global",
        capacity=capacity,
        requests=requests,
        hits=hits,
        misses=requests - hits,
        bytes_read=bytes_read,
        evictions=optimum.evictions,
    )
