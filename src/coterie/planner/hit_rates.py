"""How many of the experts that tokens ask for will be in memory: four grades of forecast.

A law that needs only dimensions is the coarsest. Curves that were replayed from recorded routing of the same model are
better (:mod:`coterie.planner.known_models`), as is a profile that was recorded of domains
(:mod:`coterie.planner.profiled`), and a probe with the user's own text is best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from coterie.planner.ranges import Range

Grade = Literal["law", "known model", "profile", "probe"]

NO_MISSES = Range(low=0.0, expected=0.0, high=0.0)
"""Where all experts fit, once each was used."""
_BASIS = "dimensions alone"

_DECAY = {"lru": 0.38, "markov": 0.42}
"""Fitted to routing of eight models; what is left out of the fit in turn is met within the factor below."""
_LAW_FACTOR = 1.6
"""The measured miss rate was within this factor of the law's in nine of ten cases, of models left out of the fit."""
_LESS, _MORE = 0.06, 0.04
"""Where few experts are missed, the first use of each counts, which depends on the length of a text and not on memory:
so much more may be missed besides at the beginning, and so much less in a cache that has been in use for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRate:
    """The forecast of one budget.

    Attributes:
        grade: ``law``, ``known model``, ``profile`` or ``probe``.
        basis: What it rests on, in words.
        rate: Hits per expert asked for while decoding, from 0 to 1: from the first tokens after an empty cache to
            those of a cache that has been in use for a while.
    """

    grade: Grade
    basis: str
    rate: Range

    @property
    def miss(self) -> Range:
        """Experts that have to be read, per expert asked for."""
        return self.rate.map(lambda rate: 1 - rate)

    @classmethod
    def of_miss(cls, miss: Range, *, grade: Grade, basis: str) -> HitRate:
        """From a miss rate."""
        return cls(grade=grade, basis=basis, rate=miss.map(lambda value: 1 - value))


class HitRates(Protocol):
    """A forecast for any budget."""

    def at(self, share: float, *, top_k: float) -> HitRate:
        """The hit rate if a share of the experts fits.

        Args:
            share: Of the bytes of a component's experts, from 0 to 1.
            top_k: Experts that a token asks for in a layer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The forecast from dimensions alone: ``miss = (1 - r) * exp(-a * sqrt(c / k))``.

    r is the share of the experts that fits, c the experts of a layer that fit, k the experts that a token asks for in a
    layer, a a constant of the eviction policy. It was fitted to routing recorded from eight models.

    Attributes:
        experts: Experts of a layer.
        eviction: Name of the policy. Those that were not fitted are taken for ``lru``.
    """

    experts: float
    eviction: str = "markov"

    def at(self, share: float, *, top_k: float) -> HitRate:
        """See :class:`HitRates`."""
        if share >= 1:
            return HitRate.of_miss(NO_MISSES, grade="law", basis=_BASIS)
        expected = self.miss(share, top_k)
        # With less than one token's experts, a cache may be turned over completely with every token.
        high = 1.0 if share * self.experts < top_k else min(1.0, expected * _LAW_FACTOR + _MORE)
        miss = Range(low=max(0.0, expected / _LAW_FACTOR - _LESS), expected=expected, high=high)
        return HitRate.of_miss(miss, grade="law", basis=_BASIS)

    def miss(self, share: float, top_k: float) -> float:
        """The likeliest miss rate."""
        decay = _DECAY.get(self.eviction, _DECAY["lru"])
        return (1 - share) * math.exp(-decay * math.sqrt(share * self.experts / top_k))
