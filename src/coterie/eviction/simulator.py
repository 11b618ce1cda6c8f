"""Replays a trace through the very policies that the cache uses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic

from coterie.errors import UsageError
from coterie.eviction.belady import belady, compulsory
from coterie.eviction.policy import POLICY_NAMES, make_policy
from coterie.eviction.prompt_use import TURNED_OVER, PromptUse
from coterie.eviction.protocol import EvictionPolicy, K
from coterie.eviction.trace import Group, Outcome, Scope, size_of, split

PolicyFactory = Callable[[], EvictionPolicy[K]]
Watch = Callable[[Group[K], int, Mapping[K, int]], None]
"""Told after each group: the group, how many of its members were hits, and what is resident now (key → bytes)."""


def simulate(
    trace: Iterable[Group[K]],
    capacity: int,
    policy: str | PolicyFactory[K],
    *,
    sizes: Mapping[K, int] | int = 1,
    scope: Scope = "global",
    watch: Watch[K] | None = None,
    expected: Mapping[K, float] | None = None,
    warm: Sequence[K] = (),
) -> Outcome:
    """Replays a trace from an empty cache, or from one that was warmed.

    The members of a group are needed together: none of them is evicted for another, as long as they fit. A group that
    does not fit is streamed: its hits first, then its misses in order, the ones already used making room, as a
    :class:`coterie.cache.Lease` does it. A prefill uses its members one by one, so each of them may make room for the
    next.

    Args:
        trace: Groups in the order of use.
        capacity: Bytes in all.
        policy: A policy's name, or a callable that makes a fresh one (with scope ``layer``, one for each layer).
        sizes: Bytes of each record, or of every record. The default counts records.
        scope: One capacity for all layers, or an even share for each.
        watch: Told after each group; with scope ``layer`` it sees one layer after the other. It must not change what it
            is shown.
        expected: For the policy ``trust``: key → uses per visit.
        warm: Keys that are resident at the beginning as if they had been warmed, the most valuable first, as many of
            them as fit. One capacity for all layers only.

    Raises:
        UsageError: For an unknown policy or scope, a capacity below one record, or a repeated key in a group.
    """
    if warm and scope != "global":
        raise UsageError("Warming knows one capacity for all layers only.", advice="Use the scope 'global'.", got=scope)
    if isinstance(policy, str):
        name = policy
        make_policy(name, expected)

        def make() -> EvictionPolicy[K]:
            return make_policy(name, expected)
    else:
        name, make = getattr(policy, "__name__", type(policy).__name__), policy
    parts = []
    for part, share in split(trace, capacity, scope):
        one = _Replay(make(), share, sizes)
        one.warm(warm)
        parts.append(one.run(part, watch))
    return Outcome.total(parts, policy=name, scope=scope, capacity=capacity)


def compare(
    trace: Iterable[Group[K]],
    capacity: int,
    policies: Iterable[str] = POLICY_NAMES,
    *,
    sizes: Mapping[K, int] | int = 1,
    scope: Scope = "global",
) -> list[Outcome]:
    """The named policies on one trace, then the two bounds: ``belady`` and ``compulsory``."""
    groups = list(trace)
    outcomes = [simulate(groups, capacity, name, sizes=sizes, scope=scope) for name in policies]
    outcomes.append(belady(groups, capacity, sizes=sizes, scope=scope))
    outcomes.append(compulsory(groups, capacity, sizes=sizes, scope=scope))
    return outcomes


class _Replay(Generic[K]):
    """One policy over one capacity."""

    def __init__(self, policy: EvictionPolicy[K], capacity: int, sizes: Mapping[K, int] | int) -> None:
        self._policy = policy
        self._capacity = capacity
        self._sizes = sizes
        self._resident: dict[K, int] = {}
        self._cold: set[K] = set()
        # By layer, as many of its keys as it has a share of the capacity for.
        self._shares: dict[int, int] = {}
        self._used = 0
        self._evictions = 0

    def warm(self, keys: Sequence[K]) -> None:
        """Makes keys resident that nobody has asked for."""
        for key in dict.fromkeys(keys):
            size = size_of(self._sizes, key, self._capacity)
            if self._used + size > self._capacity:
                return
            self._policy.insert(key, size, cold=True)
            self._cold.add(key)
            self._resident[key] = size
            self._used += size

    def run(self, groups: Iterable[Group[K]], watch: Watch[K] | None) -> Outcome:
        requests = hits = bytes_read = 0
        groups = list(groups)
        if any(group.last for group in groups):
            self._divide(groups)
        for group in groups:
            missing = [key for key in group.keys if key not in self._resident]
            requests += len(group.keys)
            hits += len(group.keys) - len(missing)
            bytes_read += self._serve(group, missing)
            if watch is not None:
                watch(group, len(group.keys) - len(missing), self._resident)
        return Outcome(
            policy="",
            scope="global",
            capacity=self._capacity,
            requests=requests,
            hits=hits,
            misses=requests - hits,
            bytes_read=bytes_read,
            evictions=self._evictions,
        )

    def _divide(self, groups: Sequence[Group[K]]) -> None:
        of_layer: dict[int, set[K]] = {}
        for group in groups:
            of_layer.setdefault(group.layer, set()).update(group.keys)
        total = sum(size_of(self._sizes, key, self._capacity) for keys in of_layer.values() for key in keys)
        room = total if self._capacity >= total else self._capacity - self._capacity // TURNED_OVER
        for layer, keys in of_layer.items():
            self._shares[layer] = len(keys) * room // total

    def _observe(self, group: Group[K]) -> Collection[K]:
        """A prefill's last tokens used these; returns what is kept of that, as the cache does it."""
        use = PromptUse(group.last, self._shares[group.layer])
        use.tell(self._policy, self._resident, self._cold.__contains__)
        self._cold.difference_update(use.kept)
        return use.kept

    def _serve(self, group: Group[K], missing: list[K]) -> int:
        absent = set(missing)
        used = deque(key for key in group.keys if key not in absent)
        kept = self._observe(group) if group.last else ()
        if not group.prefill:
            self._cold.difference_update(used)
            for key in used:
                self._policy.hit(key)
        pinned = set() if group.prefill else set(used)
        bytes_read = 0
        for key in missing:
            size = size_of(self._sizes, key, self._capacity)
            self._make_room(size, pinned, used)
            cold = group.prefill and key not in kept
            self._policy.insert(key, size, cold=cold)
            if cold:
                self._cold.add(key)
            self._resident[key] = size
            self._used += size
            bytes_read += size
            if not group.prefill:
                pinned.add(key)
                used.append(key)
        return bytes_read

    def _make_room(self, size: int, pinned: set[K], used: deque[K]) -> None:
        needed = self._used + size - self._capacity
        if needed <= 0:
            return
        victims = self._policy.victims(needed, lambda key: key not in pinned)
        while not victims:
            if not used:
                raise UsageError("The policy names no victim although every resident record may leave.")
            pinned.discard(used.popleft())
            victims = self._policy.victims(needed, lambda key: key not in pinned)
        for key in victims:
            self._policy.remove(key)
            self._cold.discard(key)
            self._used -= self._resident.pop(key)
            self._evictions += 1
