"""Sounds and pictures: how far a model is from the full one in what the full one says about each.

There is no text to be predicted. So the full model answers first, always with its most probable token, and then both
predict that answer: the divergence is that of their predictions, token by token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from coterie.errors import CoterieError, UnsupportedError
from coterie.evaluate.greedy import continue_greedily
from coterie.evaluate.journal import Finished
from coterie.evaluate.scores import score
from coterie.evaluate.subject import Side, Subject
from coterie.generation.chat import chat_inputs, user_message
from coterie.hf.last_logits import PARAMETER, takes_parameter

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.evaluate.reference import Reference
    from coterie.generation.processors import Processors

Answered = tuple[tuple[int, ...], "Tensor"]
"""Tokens of the full model's answer, and its logits [T, V] of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """A file with a sound or a picture.

    Attributes:
        name: What results call it together with others of the same kind, such as ``speech of dialogue``.
        kind: What it is.
        path: The file.
    """

    name: str
    kind: Literal["speech", "images"]
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """A sound or a picture that is answered.

    Attributes:
        file: The file.
        new_tokens: The most tokens of an answer.
        length: Tokens of what is given and of the answer, at most.
        digest: Hex digits that differ if a model may answer differently.
    """

    file: MediaFile
    new_tokens: int
    length: int
    digest: str

    def inputs(self, processors: Processors) -> Any:
        """What a model is given: a turn with nothing but the sound or picture."""
        return _inputs(processors, self.file)


def read_media(files: Sequence[MediaFile], processors: Processors, *, new_tokens: int) -> list[list[Medium]]:
    """Sounds and pictures by name, after each has been read once.

    Args:
        files: The files.
        processors: Those of the model.
        new_tokens: The most tokens of an answer.

    Raises:
        InputError: If a file cannot be used; names it.
    """
    found: dict[str, list[Medium]] = {}
    for one in files:
        try:
            tokens = int(_inputs(processors, one)["input_ids"].shape[1])
        except CoterieError as error:
            raise type(error)(f"{one.path}: {error.message}", advice=error.advice, **error.facts) from error
        content = hashlib.sha256(one.path.read_bytes()).hexdigest()
        medium = Medium(
            file=one,
            new_tokens=new_tokens,
            length=tokens + new_tokens,
            digest=hashlib.sha256(repr(("", one.kind, content, new_tokens)).encode()).hexdigest(),
        )
        found.setdefault(one.name, []).append(medium)
    return list(found.values())


def _inputs(processors: Processors, one: MediaFile) -> Any:
    sounds, pictures = ([one.path] if one.kind == kind else [] for kind in ("speech", "images"))
    return chat_inputs(processors, [user_message("", audios=sounds, images=pictures)])


@dataclass(frozen=True, slots=True, kw_only=True)
class MediumTask:
    """A sound or a picture, to be answered by the full model, and its answer to be scored.

    Attributes:
        key: Numbers of its domain, which follow those of the texts, and of itself.
        medium: What it is.
        subject: The model that is evaluated.
        full_subject: The full model.
    """

    key: tuple[int, int]
    medium: Medium
    subject: Subject
    full_subject: Subject

    @property
    def tokens(self) -> int:
        """Tokens of the answer at most."""
        return self.medium.new_tokens

    def piece(self) -> MediumPiece:
        """What both models are given."""
        return MediumPiece(
            inputs=self.medium.inputs(self.subject.processors),
            full_inputs=self.medium.inputs(self.full_subject.processors),
            new_tokens=self.tokens,
        )

    def is_kept(self, kept: Reference) -> bool:
        """Whether the answer and its logits are there."""
        return kept.has_continuation(self.medium.digest) and kept.has_logits(self.key)

    def keep(self, kept: Reference, found: Answered) -> None:
        """Keeps them."""
        ids, logits = found
        kept.keep_continuation(self.medium.digest, ids)
        kept.keep_logits(self.key, logits)

    def kept(self, kept: Reference) -> Answered:
        """The answer, and its logits."""
        ids = kept.continuation(self.medium.digest, self.tokens)
        return ids, kept.logits(self.key, len(ids))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediumPiece:
    """A sound or a picture to be answered.

    Attributes:
        inputs: What the model is given.
        full_inputs: What the full model is given.
        new_tokens: The most tokens of an answer.
    """

    inputs: Any
    full_inputs: Any
    new_tokens: int

    def of_full(self, full: Side) -> Answered:
        """The full model's answer, and its logits."""
        ids = continue_greedily(full.model, full.subject.tokenizer, self.full_inputs, self.new_tokens)
        return ids, predict_answer(full.model, self.full_inputs, ids)

    def of_model(self, model: Side, full: Answered | None) -> Finished:
        """Scores the model's logits of that answer."""
        assert full is not None, "sounds and pictures are compared with a full model"
        ids, expected = full
        how = model.subject.adapt_experts
        with nullcontext() if how is None else model.model.coterie.adapt_experts(how):
            logits = predict_answer(model.model, self.inputs, ids)
        return Finished(score(logits, ids, expected))


@torch.inference_mode()
def predict_answer(model: Any, inputs: Any, ids: Sequence[int]) -> Tensor:
    """Runs a model over a prompt and an answer, in one pass.

    Args:
        model: A transformers model that predicts the next token, streamed or stock.
        inputs: The prompt: ids and masks [1, P], and features of sounds and pictures.
        ids: The T tokens of the answer.

    Returns:
        Logits [T, V] in the model's dtype, for the tokens of the answer.

    Raises:
        UnsupportedError: If the model gives no logits for each token.
        CoterieError: As reading experts does.
    """
    given = inputs["input_ids"]
    answer = torch.tensor([list(ids[:-1])], dtype=given.dtype)
    rest = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    passed: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(model.dtype)
        elif isinstance(value, torch.Tensor) and value.shape == given.shape:
            # Of masks that say which tokens are of a sound or a picture: none of an answer is.
            value = torch.cat([value, rest.get(name, torch.zeros_like(answer)).to(value.dtype)], dim=1)
        passed[name] = value
    options = {PARAMETER: len(ids)} if takes_parameter(type(model)) else {}
    logits = getattr(model(**passed, **options, use_cache=False), "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[1] < len(ids):
        raise UnsupportedError(
            f"{type(model).__name__} gives no logits for each token of an answer.",
            advice="Only models that predict the next token can be evaluated; of an omni model that is its thinker.",
        )
    return logits[0, -len(ids) :]
