"""Quality against what is saved: experts that are there, experts per token, bits per weight, experts left unread.

Names are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.curves.figure import curve_figure
    from coterie.curves.points import Curve, CurvePoint, SharedExperts, SmallestSet, read_curve
    from coterie.curves.running import CurveProgress, curve
    from coterie.curves.settings import CurveAxes, Setting

_HOMES = {
    "Curve": "coterie.curves.points",
    "CurveAxes": "coterie.curves.settings",
    "CurvePoint": "coterie.curves.points",
    "CurveProgress": "coterie.curves.running",
    "Setting": "coterie.curves.settings",
    "SharedExperts": "coterie.curves.points",
    "SmallestSet": "coterie.curves.points",
    "curve": "coterie.curves.running",
    "curve_figure": "coterie.curves.figure",
    "read_curve": "coterie.curves.points",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = [
    "Curve",
    "CurveAxes",
    "CurvePoint",
    "CurveProgress",
    "Setting",
    "SharedExperts",
    "SmallestSet",
    "curve",
    "curve_figure",
    "read_curve",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
