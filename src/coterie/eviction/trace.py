"""What a simulation reads and what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal

from coterie.errors import UsageError
from coterie.eviction.protocol import K

Scope = Literal["global", "layer"]
"""``global``: one capacity for all layers; ``layer``: the capacity is divided evenly among the layers of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Generic[K]):
    """The records that one layer needs together in one step.

    Attributes:
        step: Forward pass.
        layer: Number of the layer (unique across components, where there are several).
        keys: Distinct keys.
        prefill: Whether it is a prefill's: misses are then inserted cold, and hits do not count as use.
        last: Of a prefill, the keys of each of its last tokens, oldest first: these are uses.
    """

    step: int
    layer: int
    keys: tuple[K, ...]
    prefill: bool = False
    last: tuple[tuple[K, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys):
            raise UsageError(f"Step {self.step}, layer {self.layer} of the trace names a key twice.", keys=self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a policy made of a trace, from an empty cache.

    Attributes:
        policy: Name of the policy; ``belady`` and ``compulsory`` are bounds.
        scope: How the capacity was shared by the layers.
        capacity: Bytes in all.
        requests: Keys asked for.
        hits: Of these, resident when their group began.
        misses: The others; each is read once per group.
        bytes_read: Bytes of the misses.
        evictions: Records that left.
    """

    policy: str
    scope: Scope
    capacity: int
    requests: int
    hits: int
    misses: int
    bytes_read: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """Hits per request; 0 for an empty trace."""
        return self.hits / self.requests if self.requests else 0.0

    @classmethod
    def total(cls, outcomes: Iterable[Outcome], *, policy: str, scope: Scope, capacity: int) -> Outcome:
        """The sum of several outcomes, such as those of the layers."""
        parts = list(outcomes)
        return cls(
            policy=policy,
            scope=scope,
            capacity=capacity,
            requests=sum(part.requests for part in parts),
            hits=sum(part.hits for part in parts),
            misses=sum(part.misses for part in parts),
            bytes_read=sum(part.bytes_read for part in parts),
            evictions=sum(part.evictions for part in parts),
        )


def split(trace: Iterable[Group[K]], capacity: int, scope: Scope) -> list[tuple[list[Group[K]], int]]:
    """The parts of a trace that have a capacity of their own, each with that capacity in bytes."""
    if capacity <= 0:
        raise UsageError(f"The capacity must be a positive number of bytes, not {capacity}.", capacity=capacity)
    groups = list(trace)
    if scope == "global":
        return [(groups, capacity)]
    if scope != "layer":
        raise UsageError.unknown("scope", scope, ("global", "layer"))
    by_layer: dict[int, list[Group[K]]] = {}
    for group in groups:
        by_layer.setdefault(group.layer, []).append(group)
    return [(part, capacity // len(by_layer)) for part in by_layer.values()]


def size_of(sizes: Mapping[K, int] | int, key: K, capacity: int) -> int:
    """Bytes of a record, checked against the capacity that it must fit in."""
    size = sizes if isinstance(sizes, int) else sizes[key]
    if not 0 < size <= capacity:
        raise UsageError(
            f"The record of {key} has {size} bytes, the capacity that it must fit in {capacity}.",
            advice="Give a capacity that holds at least one record (of every layer, with scope 'layer').",
            key=key,
            expected=capacity,
            got=size,
        )
    return size
