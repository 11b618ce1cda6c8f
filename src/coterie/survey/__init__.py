"""Runs a model over texts, sounds and pictures, and records in a profile what its experts do.

Names are looked up when they are first used: which files there are is found out without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.survey.material import Material, MaterialKind, WorkDone, gather, without_repetitions
    from coterie.survey.running import Survey, survey

_HOMES = {
    "Material": "coterie.survey.material",
    "MaterialKind": "coterie.survey.material",
    "Survey": "coterie.survey.running",
    "WorkDone": "coterie.survey.material",
    "gather": "coterie.survey.material",
    "survey": "coterie.survey.running",
    "without_repetitions": "coterie.survey.material",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = ["Material", "MaterialKind", "Survey", "WorkDone", "gather", "survey", "without_repetitions"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
