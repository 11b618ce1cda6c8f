"""Runs a model over texts, sounds and pictures, and chooses the codes of its experts by what they are given."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.calibration.calibration import DEFAULT_TOKENS, Calibration
    from coterie.calibration.defaults import default_texts

_HOMES = {
    "DEFAULT_TOKENS": "coterie.calibration.calibration",
    "Calibration": "coterie.calibration.calibration",
    "default_texts": "coterie.calibration.defaults",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = ["DEFAULT_TOKENS", "Calibration", "default_texts"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
