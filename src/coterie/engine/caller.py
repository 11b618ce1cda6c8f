"""Who opens a model: warnings are about a line of theirs."""

from __future__ import annotations

import sys
import warnings

_WAY = frozenset(f"coterie.engine.{name}" for name in ("loader", "model", "opening", "runtime", "warming"))
"""Modules between a caller and what is found out while a model is opened."""


def warn_caller(message: str) -> None:
    """Warns in the name of the line that opens the model, however many functions are between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__") in _WAY:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
