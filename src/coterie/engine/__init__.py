"""Opens a model under a budget, and observes and records what it does.

Names are looked up when they are first used: what a command line says about sampling is checked without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.engine.loader import load
    from coterie.engine.opening import open_streamed
    from coterie.engine.recording import TokenRecorder, TraceRecorder
    from coterie.engine.runtime import Runtime
    from coterie.engine.source import ModelSource, open_source
    from coterie.engine.statistics import BankStats, ModelStats, TokenStats
    from coterie.files.naming import BUNDLED, resolve_path

_HOMES = {
    "BUNDLED": "coterie.files.naming",
    "BankStats": "coterie.engine.statistics",
    "ModelSource": "coterie.engine.source",
    "ModelStats": "coterie.engine.statistics",
    "Runtime": "coterie.engine.runtime",
    "TokenRecorder": "coterie.engine.recording",
    "TokenStats": "coterie.engine.statistics",
    "TraceRecorder": "coterie.engine.recording",
    "load": "coterie.engine.loader",
    "open_streamed": "coterie.engine.opening",
    "open_source": "coterie.engine.source",
    "resolve_path": "coterie.files.naming",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = [
    "BUNDLED",
    "BankStats",
    "ModelSource",
    "ModelStats",
    "Runtime",
    "TokenRecorder",
    "TokenStats",
    "TraceRecorder",
    "load",
    "open_source",
    "open_streamed",
    "resolve_path",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
