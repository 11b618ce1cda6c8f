"""What the last tokens of a prompt used of a bank: a prefill asks for nearly everything, the next token for little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp
from typing import Generic, Protocol, runtime_checkable

from coterie.eviction.protocol import EvictionPolicy, K

LAST_TOKENS = 64
"""Tokens of a prompt that say what comes next."""
_SCALE = 16.0
"""A use counts for 1/e of one so many tokens later."""


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
        kept: The keys that are worth their room: of what was used, that with the most and latest uses.
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
        self.kept = frozenset(sorted(scores, key=scores.__getitem__, reverse=True)[:count])

    def tell(self, policy: EvictionPolicy[K], warm: Iterable[K]) -> None:
        """Tells a policy.

        Args:
            policy: The policy.
            warm: What is resident of :attr:`kept`, and not cold: for a policy that does not observe, these are hits.
        """
        if isinstance(policy, Observing):
            policy.observe(self.visits)
            return
        for key in warm:
            policy.hit(key)
