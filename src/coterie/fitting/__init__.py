"""From a memory budget to the best store of a model for it, with a card that says what it loses.

Profile, pruning if asked for, plan, allocation, calibration, verification, evaluation: :func:`fit` calls the public
function of each stage, one after the other, and keeps what is finished. docs/fit.md says how it decides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.fitting.costs import FitPlan, StagePlan
    from coterie.fitting.preparing import plan_fit
    from coterie.fitting.report import Fit
    from coterie.fitting.request import FitRequest
    from coterie.fitting.running import FitProgress, fit

_HOMES = {
    "Fit": "coterie.fitting.report",
    "FitPlan": "coterie.fitting.costs",
    "FitProgress": "coterie.fitting.running",
    "FitRequest": "coterie.fitting.request",
    "StagePlan": "coterie.fitting.costs",
    "fit": "coterie.fitting.running",
    "plan_fit": "coterie.fitting.preparing",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = ["Fit", "FitPlan", "FitProgress", "FitRequest", "StagePlan", "fit", "plan_fit"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
