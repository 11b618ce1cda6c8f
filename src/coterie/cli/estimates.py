"""Figures with their confidence intervals, as tables show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.evaluate import Estimate


def value_and_interval(estimate: Estimate, digits: int, *, scale: float = 1.0) -> str:
    """A figure with its interval, such as ``1.052 (1.048 – 1.057)``."""
    text = f"{estimate.value * scale:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low * scale:.{digits}f} – {estimate.high * scale:.{digits}f})"


def value_and_reach(estimate: Estimate, digits: int, *, scale: float = 1.0) -> str:
    """A figure and how far its interval reaches on the wider side, such as ``98.40 ± 0.12``."""
    text = f"{estimate.value * scale:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    reach = max(estimate.value - estimate.low, estimate.high - estimate.value)
    return f"{text} ± {reach * scale:.{digits}f}"
