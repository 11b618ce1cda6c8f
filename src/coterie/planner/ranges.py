"""A forecast: the likeliest value, and the two that it should lie between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A value that is not known exactly.

    Attributes:
        low: The measured value should not be below this in nine of ten cases, together with ``high``.
        expected: The likeliest value.
        high: The measured value should not be above this.
    """

    low: float
    expected: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Whether a measured value lies within the range."""
        return self.low <= value <= self.high

    def map(self, function: Callable[[float], float]) -> Range:
        """The range of a function that only rises or only falls."""
        one, other = function(self.low), function(self.high)
        return Range(low=min(one, other), expected=function(self.expected), high=max(one, other))
