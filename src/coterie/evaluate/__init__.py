"""What a lossy scheme or a partial store costs: perplexity, and divergence from the full model, on texts.

Names are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.evaluate.confidence import Estimate, block_starts, mean_estimate, share_estimate
    from coterie.evaluate.evaluation import (
        Answer,
        Continuation,
        Continuations,
        Evaluation,
        EvaluationProgress,
        ExactMatch,
        Likeness,
        ModelFacts,
    )
    from coterie.evaluate.media import MediaFile
    from coterie.evaluate.quality import Comparison, Quality, measure
    from coterie.evaluate.reads import Reads
    from coterie.evaluate.running import evaluate
    from coterie.evaluate.scores import TokenScores, predict, predict_in_steps, score
    from coterie.evaluate.texts import Text, encode
    from coterie.evaluate.windows import Window, plan_windows
    from coterie.files.text import read_text

_HOMES = {
    "Answer": "coterie.evaluate.evaluation",
    "Comparison": "coterie.evaluate.quality",
    "Continuation": "coterie.evaluate.evaluation",
    "Continuations": "coterie.evaluate.evaluation",
    "Estimate": "coterie.evaluate.confidence",
    "Evaluation": "coterie.evaluate.evaluation",
    "EvaluationProgress": "coterie.evaluate.evaluation",
    "ExactMatch": "coterie.evaluate.evaluation",
    "Likeness": "coterie.evaluate.evaluation",
    "MediaFile": "coterie.evaluate.media",
    "ModelFacts": "coterie.evaluate.evaluation",
    "Quality": "coterie.evaluate.quality",
    "Reads": "coterie.evaluate.reads",
    "Text": "coterie.evaluate.texts",
    "TokenScores": "coterie.evaluate.scores",
    "Window": "coterie.evaluate.windows",
    "block_starts": "coterie.evaluate.confidence",
    "encode": "coterie.evaluate.texts",
    "evaluate": "coterie.evaluate.running",
    "mean_estimate": "coterie.evaluate.confidence",
    "measure": "coterie.evaluate.quality",
    "plan_windows": "coterie.evaluate.windows",
    "predict": "coterie.evaluate.scores",
    "predict_in_steps": "coterie.evaluate.scores",
    "read_text": "coterie.files.text",
    "score": "coterie.evaluate.scores",
    "share_estimate": "coterie.evaluate.confidence",
}
"""Public name -> the module that defines it, as under ``TYPE_CHECKING``."""

__all__ = [
    "Answer",
    "Comparison",
    "Continuation",
    "Continuations",
    "Estimate",
    "Evaluation",
    "EvaluationProgress",
    "ExactMatch",
    "Likeness",
    "MediaFile",
    "ModelFacts",
    "Quality",
    "Reads",
    "Text",
    "TokenScores",
    "Window",
    "block_starts",
    "encode",
    "evaluate",
    "mean_estimate",
    "measure",
    "plan_windows",
    "predict",
    "predict_in_steps",
    "read_text",
    "score",
    "share_estimate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
