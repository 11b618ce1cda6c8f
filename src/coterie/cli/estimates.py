"""Figures as tables show them: with their confidence intervals, and with what flatters them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.evaluate import Estimate, Quality

_CALIBRATED_SHARE = 0.02
"""Of a text that a store was calibrated on, from which on it is told: less are phrases that everybody writes."""


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


def calibrated_on(texts: Sequence[Quality], shares: Sequence[float] | None, where: str = "") -> list[str]:
    """What is said of texts that a store was calibrated on.

    Args:
        texts: The texts.
        shares: About which share of each; None if the model is no calibrated store.
        where: Which store, if there are several.
    """
    return [
        f"{where}{text.name}: the store was calibrated on about {round(100 * share)} % of this text. Its figures "
        "flatter the store: evaluate with documents that calibration did not see."
        for text, share in zip(texts, shares or (), strict=False)
        if share >= _CALIBRATED_SHARE
    ]
