"""How many answers are right to the letter, beside the full model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coterie.evaluate.confidence import share_estimate
from coterie.evaluate.evaluation import Answer, ExactMatch
from coterie.evaluate.journal import Continued
from coterie.evaluate.questions import Question


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
