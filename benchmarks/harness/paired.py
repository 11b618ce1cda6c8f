"""Timing of contestants side by side: a busy minute then hits all of them, and their ratio stays.

Every round runs each contestant once, in an order that rotates; a ratio is the median over rounds of the ratio within
one round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Measurements by contestant, one for each round."""

    rounds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds[name])

    def spread(self, name: str) -> tuple[float, float]:
        """Quartiles over rounds (with fewer than four rounds, the extremes)."""
        values = sorted(self.rounds[name])
        if len(values) < 4:
            return values[0], values[-1]
        low, _, high = statistics.quantiles(values, n=4)
        return low, high

    def ratio(self, name: str, base: str) -> float:
        """Median over rounds of ``name`` / ``base``."""
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[base], strict=True))


def interleave(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Timings:
    """Measures every contestant once a round.

    Args:
        contestants: Name → a function that returns one measurement.
        rounds: How many.
    """
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(contestants[name]())
    return Timings(taken)
