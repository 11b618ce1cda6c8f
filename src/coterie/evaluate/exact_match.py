"""How many answers are right to the letter, beside the full model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.evaluate.confidence import Estimate, share_estimate
from coterie.evaluate.journal import Continued
from coterie.evaluate.questions import Question


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


def match(
    tokenizer: Any, questions: Sequence[Question], found: Sequence[Continued], *, compared: bool
) -> tuple[ExactMatch, ...]:
    """Compares answers with the right ones, file by file.

    Args:
        tokenizer: That of the models.
        questions: The questions.
        found: What was answered to each.
        compared: Whether there is a full model.
    """
    groups: dict[str, list[Answer]] = {}
    for question, one in zip(questions, found, strict=True):
        said = question.answer(tokenizer, one.ids)
        full = None if one.full_ids is None else question.answer(tokenizer, one.full_ids)
        answer = Answer(
            line=question.line,
            asked=question.asked,
            expected=question.expected,
            model=said,
            full=full,
            right=said == question.expected,
            full_right=None if full is None else full == question.expected,
        )
        groups.setdefault(question.file, []).append(answer)
    return tuple(_summed(name, answers, compared) for name, answers in groups.items())


def _summed(name: str, answers: Sequence[Answer], compared: bool) -> ExactMatch:
    count = len(answers)
    return ExactMatch(
        name=name,
        questions=count,
        right=share_estimate(sum(one.right for one in answers), count),
        full_right=share_estimate(sum(one.full_right is True for one in answers), count) if compared else None,
        only_model=sum(one.right and not one.full_right for one in answers) if compared else None,
        only_full=sum(one.full_right is True and not one.right for one in answers) if compared else None,
        answers=tuple(answers),
    )
