"""Run Mixture-of-Experts models whose experts do not fit in memory, exactly, under a byte budget.

Importing this package loads nothing and changes nothing: each public name is looked up in its module when it is first
used, so that ``import coterie`` costs no import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie import analysis, calibration, curves, errors, evaluate, fitting, planner, profiles, survey
    from coterie.engine import load
    from coterie.exporting import export
    from coterie.extraction import Allocation, extract, prune, quantize
    from coterie.generation.chat import chat_inputs
    from coterie.generation.conversation import Conversation
    from coterie.generation.engine import Engine
    from coterie.generation.grammar import Grammar
    from coterie.generation.inputs import build_inputs
    from coterie.generation.opened import processors
    from coterie.generation.prefixes import Prefixes
    from coterie.generation.reading_aloud import read_aloud
    from coterie.generation.samples import samples
    from coterie.generation.sampling import Sampling
    from coterie.generation.speaking import speak
    from coterie.generation.speech import Voice
    from coterie.generation.tickets import SoundChunk
    from coterie.generation.video_options import VideoOptions
    from coterie.inspection import inspect, verify
    from coterie.publishing import publish

    __version__: str

_HOMES: dict[str, str] = {
    "Allocation": "coterie.extraction",
    "Conversation": "coterie.generation.conversation",
    "Engine": "coterie.generation.engine",
    "Grammar": "coterie.generation.grammar",
    "Prefixes": "coterie.generation.prefixes",
    "Sampling": "coterie.generation.sampling",
    "SoundChunk": "coterie.generation.tickets",
    "VideoOptions": "coterie.generation.video_options",
    "Voice": "coterie.generation.speech",
    "build_inputs": "coterie.generation.inputs",
    "chat_inputs": "coterie.generation.chat",
    "export": "coterie.exporting",
    "extract": "coterie.extraction",
    "inspect": "coterie.inspection",
    "load": "coterie.engine",
    "processors": "coterie.generation.opened",
    "prune": "coterie.extraction",
    "publish": "coterie.publishing",
    "quantize": "coterie.extraction",
    "read_aloud": "coterie.generation.reading_aloud",
    "samples": "coterie.generation.samples",
    "speak": "coterie.generation.speaking",
    "verify": "coterie.inspection",
}
"""Public name -> the module that defines it. Listed for type checkers under ``TYPE_CHECKING`` above, too."""

_SUBMODULES = frozenset(
    {"analysis", "calibration", "curves", "errors", "evaluate", "fitting", "planner", "profiles", "survey"}
)

__all__ = [
    "Allocation",
    "Conversation",
    "Engine",
    "Grammar",
    "Prefixes",
    "Sampling",
    "SoundChunk",
    "VideoOptions",
    "Voice",
    "__version__",
    "analysis",
    "build_inputs",
    "calibration",
    "chat_inputs",
    "curves",
    "errors",
    "evaluate",
    "export",
    "extract",
    "fitting",
    "inspect",
    "load",
    "planner",
    "processors",
    "profiles",
    "prune",
    "publish",
    "quantize",
    "read_aloud",
    "samples",
    "speak",
    "survey",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(_HOMES[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"{__name__}.{name}")
    elif name == "__version__":
        # Imported here because it costs more than all else that ``import coterie`` does.
        from importlib.metadata import version

        value = version("coterie")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
