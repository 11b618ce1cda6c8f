"""Opens a model under a budget, builds its inputs, generates and records."""

from coterie.checkpoint import BUNDLED, resolve_path
from coterie.engine.loader import load
from coterie.engine.recording import TokenRecorder, TraceRecorder
from coterie.engine.runtime import Runtime
from coterie.engine.source import ModelSource, open_source
from coterie.engine.statistics import BankStats, ModelStats, TokenStats

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
    "resolve_path",
]
