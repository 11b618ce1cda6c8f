"""What an evaluation found, as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coterie.evaluate.confidence import LEVEL, Estimate
from coterie.evaluate.quality import Quality
from coterie.evaluate.reads import Reads
from coterie.files.plain_values import to_plain

EVALUATION_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model it was.

    Attributes:
        name: Directory name or Hub id.
        kind: ``store`` or ``checkpoint``.
        identity: Fingerprint of the architecture and the routers: the same for all schemes and parts of one model.
        experts: Experts that it holds.
        total_experts: Experts that the model has.
    """

    name: str
    kind: str
    identity: str
    experts: int
    total_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A prompt, and what both models make of it.

    Attributes:
        text: Name of the text that it is from.
        start: Number of its first token in the text, from 0.
        prompt: The prompt.
        following: What the text itself goes on with, in as many tokens as the models may add.
        full: The full model's continuation, without special tokens.
        model: The model's.
        full_tokens: Tokens of the full model's, with the one that ended it.
        tokens: Tokens of the model's.
        equal_tokens: How many of them are the same before the first that differs.
        identical: Whether all of them are.
    """

    text: str
    start: int
    prompt: str
    following: str
    full: str
    model: str
    full_tokens: int
    tokens: int
    equal_tokens: int
    identical: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike the continuations of one text, or of all texts, are.

    Attributes:
        name: The text's path, or ``all``.
        prompts: How many were continued.
        equal_tokens: Mean number of equal tokens before the first that differs. Prompts are taken for independent.
        identical: Share of continuations that are the same to the last token.
        bleu: BLEU of all of them as one corpus, 0 to 100.
        chrf: chrF likewise.
    """

    name: str
    prompts: int
    equal_tokens: Estimate
    identical: Estimate
    bleu: float
    chrf: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuations:
    """What greedy decoding of both models shows.

    Attributes:
        prompt_tokens: Tokens of each prompt.
        new_tokens: The most tokens that it was continued with.
        bleu_signature: How sacrebleu computed BLEU.
        chrf_signature: How it computed chrF.
        texts: The figures of each text.
        total: Those of all together.
        samples: The texts, side by side.
    """

    prompt_tokens: int
    new_tokens: int
    bleu_signature: str
    chrf_signature: str
    texts: tuple[Likeness, ...]
    total: Likeness
    samples: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered to a question; texts are without special tokens and without space around them.

    Attributes:
        line: Line of the question in its file.
        asked: The sound, the picture or the prompt.
        expected: The right answer.
        model: The model's.
        full: The full model's, or None.
        right: Whether the model's is the right one.
        full_right: Whether the full model's is, or None.
    """

    line: int
    asked: str
    expected: str
    model: str
    full: str | None
    right: bool
    full_right: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """The answers to the questions of one file.

    Attributes:
        name: The file.
        questions: How many there are.
        right: Share of answers that are right. Questions are taken for independent.
        full_right: The full model's share, or None.
        only_model: Questions that the model alone answers rightly; None without a full model.
        only_full: Those that the full model alone does.
        answers: All answers.
    """

    name: str
    questions: int
    right: Estimate
    full_right: Estimate | None
    only_model: int | None
    only_full: int | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: The model that was evaluated.
        against: The full model it was compared with, or None.
        context: Input tokens of a window.
        stride: Predictions of a window.
        limit: The most predictions of each text, or None.
        missing: What was done about absent experts, or None.
        experts_per_token: Override of the routers' k, or None.
        drop_cold: Share of a token's highest gate weight below which experts that were not in memory were left out, or
            None.
        adapt_experts: Which of the chosen experts were left out, or None.
        reads: What the model read, if it computed tokens one by one, as with ``drop_cold``; else None.
        full_reads: What the full model read likewise, which left nothing out; or None.
        calibrated_on: About which share of each text is among what the model's codes were calibrated on; None if it is
            not a calibrated store. Figures of such a text flatter the model.
        level: Confidence level of the intervals.
        texts: The figures of each text.
        total: Those of all together; None if there are no texts.
        continuations: What greedy decoding of both models shows, or None.
        exact_match: The answers to the questions of each file.
        media: The figures of the sounds and of the pictures of each domain: of the full model's answers to them.
    """

    schema_version: int = EVALUATION_SCHEMA_VERSION
    model: ModelFacts
    against: ModelFacts | None
    context: int
    stride: int
    limit: int | None
    missing: str | None
    experts_per_token: int | None
    drop_cold: float | None = None
    adapt_experts: str | None = None
    reads: Reads | None = None
    full_reads: Reads | None = None
    calibrated_on: tuple[float, ...] | None = None
    level: float = LEVEL
    texts: tuple[Quality, ...]
    total: Quality | None
    continuations: Continuations | None = None
    exact_match: tuple[ExactMatch, ...] = ()
    media: tuple[Quality, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values. What is infinite is the text ``"inf"`` (or ``"-inf"``), since JSON has no such number."""
        plain: dict[str, Any] = to_plain(dataclasses.asdict(self))
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProgress:
    """How far an evaluation is.

    Attributes:
        done: Tokens predicted, those of an earlier interrupted run included.
        total: Tokens to predict.
        earlier: Of those done, what an earlier run did.
        elapsed_s: Seconds since the first window of this run began.
    """

    done: int
    total: int
    earlier: int
    elapsed_s: float

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the speed of this run; None until there is one."""
        now = self.done - self.earlier
        return (self.total - self.done) * self.elapsed_s / now if now > 0 else None


ProgressCallback = Callable[[EvaluationProgress], None]
"""Told after every window and every continuation."""
