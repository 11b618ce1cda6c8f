"""What the last tokens of a prompt used of a bank: a prefill asks for nearly everything, the next token for little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Generic, Protocol, runtime_checkable

from coterie.eviction.protocol import EvictionPolicy, K

LAST_TOKENS = 64
"""Tokens of a prompt that say what comes next."""
_SCALE = 16.0
"""A use counts for 1/e of one so many tokens later."""
TURNED_OVER = 8
"""The part of the capacity that a prefill may push out, as its reciprocal: what it keeps has the rest."""


@runtime_checkable
class Observing(EvictionPolicy[K], Protocol[K]):
    """A policy that learns from uses that its cache was not asked for one after the other."""

    def observe(self, visits: Sequence[Sequence[K]]) -> None:
        """Uses of one bank, oldest first. What is inserted of them before the bank's next visit is no further use."""
        ...


class PromptUse(Generic[K]):
    """The keys of one bank that the last tokens of a prompt used.

    Args:
        visits: The keys of each token, oldest first; at least one token.
        count: As many keys as have room: the bank's share of the capacity.

    Attributes:
        visits: Those given.
        kept: The keys that are worth their room: of what was used, that with the most and latest uses, best first.
    """

    __slots__ = ("kept", "visits")

    def __init__(self, visits: Sequence[Sequence[K]], count: int) -> None:
        self.visits = visits
        scores: dict[K, float] = {}
        for age, keys in enumerate(reversed(visits)):
            weight = exp(-age / _SCALE)
            for key in keys:
                scores[key] = scores.get(key, 0.0) + weight
        # What the very last token used is met first, and stays first among equals.
        self.kept = dict.fromkeys(sorted(scores, key=scores.__getitem__, reverse=True)[:count])

    def tell(self, policy: EvictionPolicy[K], sizes: Mapping[K, int], is_cold: Callable[[K], bool]) -> None:
        """Tells a policy; what is resident of :attr:`kept` is warm afterwards.

        Args:
            policy: The policy.
            sizes: Bytes of what it knows to be resident.
            is_cold: Whether a resident one is cold.
        """
        # The most valuable one last, as the latest.
        resident = [key for key in reversed(self.kept) if key in sizes]
        if not isinstance(policy, Observing):
            for key in resident:
                policy.hit(key)
            return
        policy.observe(self.visits)
        for key in resident:
            if is_cold(key):
                policy.remove(key)
                policy.insert(key, sizes[key])
