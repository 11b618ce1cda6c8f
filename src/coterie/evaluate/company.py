"""How far a model's predictions in company are from those alone: what ``batching="fast"`` costs."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import UsageError
from coterie.evaluate.scores import TokenScores, score
from coterie.evaluate.texts import Text
from coterie.generation.sequence import Sequence
from coterie.generation.steps import Steps
from coterie.hf.generation_steps import last_logits, plain, prepare
from coterie.spec import Batching


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Predictions of several texts at once, compared with those of each alone.

    Attributes:
        rows: Texts that were read at once.
        passes: Forward passes in company, by the number of texts that shared each.
        tokens: Predictions that were compared, all but those of a text's first pass.
        kld_mean: Mean of KL(alone ‖ in company) over the vocabulary, in nats per token.
        kld_max: The largest.
        same_top: Share of predictions with the same most probable token.
        identical: Predictions whose logits are all the same numbers.
    """

    rows: int
    passes: dict[int, int]
    tokens: int
    kld_mean: float
    kld_max: float
    same_top: float
    identical: int


def compare_company(
    model: Any, texts: SequenceOf[Text], *, prompt: int = 32, tokens: int = 64, batching: Batching = "fast"
) -> Company:
    """Reads texts token by token, first each alone and then all at once, and compares what is predicted.

    The tokens that come are those of the texts, whatever was predicted: a token that differs does not make what follows
    another text. Texts are of different lengths when they meet: each has one token more before it than the one before.

    Args:
        model: From :func:`coterie.load`.
        texts: Texts, two at least.
        prompt: Tokens of the first text before it meets the others.
        tokens: Predictions of each text that are compared.
        batching: As of :class:`~coterie.generation.engine.Engine`.

    Raises:
        UsageError: If there are fewer than two texts, or one is too short.
    """
    if len(texts) < 2:
        raise UsageError("Only what is computed beside something else is in company.", advice="Give two texts.")
    given = [_ids(text, prompt + row + tokens + 1) for row, text in enumerate(texts)]
    lengths = [prompt + row for row in range(len(given))]
    rows = list(zip(given, lengths, strict=True))
    alone = [_predict(model, [row], Steps(), {})[0] for row in rows]
    passes: dict[int, int] = {}
    together = _predict(model, rows, Steps(batching=batching, measured=False), passes)
    scores = TokenScores.join(
        [
            score(theirs, ids[0, length + 1 : length + 1 + tokens].tolist(), ours)
            for (ids, length), theirs, ours in zip(rows, together, alone, strict=True)
        ]
    )
    assert scores.kld is not None and scores.same_top is not None and scores.identical is not None  # noqa: PT018
    return Company(
        rows=len(rows),
        passes=passes,
        tokens=len(scores.kld),
        kld_mean=float(scores.kld.mean()),
        kld_max=float(scores.kld.max()),
        same_top=float(scores.same_top.mean()),
        identical=int(scores.identical.sum()),
    )


def _ids(text: Text, tokens: int) -> Tensor:
    ids = [*text.prefix, *text.ids][:tokens]
    if len(ids) < tokens:
        raise UsageError(
            f"{text.name} has {len(ids)} tokens; {tokens} are compared.",
            advice="Give a longer text, or compare fewer tokens.",
            tokens=len(ids),
        )
    return torch.tensor([ids], dtype=torch.int64)


def _predict(model: Any, rows: SequenceOf[tuple[Tensor, int]], loop: Steps, passes: dict[int, int]) -> list[Tensor]:
    """Logits [T, V] of each text after its first pass.

    Args:
        model: The model.
        rows: Texts, and how much of each is one pass.
        loop: Takes all from pass to pass.
        passes: Texts of a pass → such passes; they are counted into it.
    """
    found: list[list[Tensor]] = [[] for _ in rows]
    several: list[Sequence] = []
    for (ids, length), logits in zip(rows, found, strict=True):
        several.append(_reading(model, ids, length, logits))
        first = Steps()
        first.add(several[-1])
        first.step()
        several[-1].check()
        logits.clear()
    for one in several:
        loop.add(one)
    while loop.going:
        ran = loop.step()
        for one in ran:
            one.check()
        passes[len(ran)] = passes.get(len(ran), 0) + 1
        for one, (ids, _) in zip(several, rows, strict=True):
            if not one.ended and one.ids.shape[1] == ids.shape[1]:
                loop.remove(one)
    return [torch.cat(logits) for logits in found]


def _reading(model: Any, ids: Tensor, length: int, logits: list[Tensor]) -> Sequence:
    """A sequence that goes on with a text's own tokens."""
    given = iter(ids[0, length:, None])
    first = ids[:, :length]
    # As a request's own, but nothing of the settings ends it or changes its logits.
    bare = plain(model, first)
    prepared = prepare(model, input_ids=first, max_new_tokens=ids.shape[1] - length)
    return Sequence(
        replace(prepared, criteria=bare.criteria, processors=bare.processors),
        chooser=lambda _: next(given),
        keep=lambda outputs: logits.append(last_logits(outputs, first)),
    )
