"""What a lossy scheme or a partial store costs: perplexity, and divergence from the full model, on texts."""

from coterie.evaluate.confidence import Estimate, block_starts, mean_estimate, share_estimate
from coterie.evaluate.continuations import Continuation, Continuations, Likeness
from coterie.evaluate.evaluation import Evaluation, EvaluationProgress, ModelFacts
from coterie.evaluate.exact_match import Answer, ExactMatch
from coterie.evaluate.quality import Comparison, Quality, measure
from coterie.evaluate.reads import Reads
from coterie.evaluate.running import evaluate
from coterie.evaluate.scores import TokenScores, predict, predict_in_steps, score
from coterie.evaluate.texts import Text, encode
from coterie.evaluate.windows import Window, plan_windows
from coterie.files.text import read_text

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
