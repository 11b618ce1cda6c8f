"""What both models are asked to write: continuations of texts, and answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import UsageError
from coterie.evaluate.continuations import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS, text_metrics
from coterie.evaluate.greedy import Prompt, cut_prompts
from coterie.evaluate.media import MediaFile, Medium, read_media
from coterie.evaluate.questions import DEFAULT_ANSWER_TOKENS, Question, read_questions

if TYPE_CHECKING:
    from coterie.evaluate.texts import Text
    from coterie.generation.processors import Processors

_NUMBERS = ("continuations", "continuation_tokens", "prompt_tokens", "answer_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller asks for, as :func:`~coterie.evaluate.running.evaluate` takes it.

    Attributes:
        continuations: Prompts of each text that are continued, or None.
        continuation_tokens: The most new tokens of each; None for the default.
        prompt_tokens: Tokens of each; None for the default.
        exact_match: Files of questions.
        answer_tokens: The most tokens of an answer; None for the default.
        media: Sounds and pictures that are answered.
    """

    continuations: int | None = None
    continuation_tokens: int | None = None
    prompt_tokens: int | None = None
    exact_match: tuple[str | Path, ...] = ()
    answer_tokens: int | None = None
    media: tuple[MediaFile, ...] = ()

    def check(self, *, texts: bool, compared: bool) -> None:
        """Finds what cannot be, before anything is read.

        Args:
            texts: Whether there are texts.
            compared: Whether there is a full model.

        Raises:
            UsageError: If a value is out of range, or without effect.
            MissingPackageError: If what compares continuations is not installed.
        """
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.", got=value)
        if self.answer_tokens is not None and not self.exact_match and not self.media:
            raise UsageError(
                "answer_tokens is about questions, sounds and pictures, and there are none.",
                advice="Name a file: exact_match.",
            )
        if self.media and not compared:
            raise UsageError(
                "Sounds and pictures are compared by what the full model says of them, and none is named.",
                advice="Name it: against.",
            )
        if self.continuations is None:
            for name in ("continuation_tokens", "prompt_tokens"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"{name} says how prompts are continued, and none is.",
                        advice="Say how many prompts of each text: continuations.",
                    )
            return
        if not texts:
            raise UsageError("What is continued comes from texts, and there is none.", advice="Name a UTF-8 file.")
        if not compared:
            raise UsageError(
                "Continuations are compared with the full model's, and none is named.", advice="Name it: against."
            )
        text_metrics()

    def prompts(self, texts: Sequence[Text]) -> list[Prompt]:
        """The prompts of all texts.

        Raises:
            InputError: If a text is too short.
        """
        count, tokens = self.continuations, self.prompt_tokens or DEFAULT_PROMPT_TOKENS
        new_tokens = self.continuation_tokens or DEFAULT_NEW_TOKENS
        if count is None:
            return []
        return [prompt for text in texts for prompt in cut_prompts(text, count, tokens=tokens, new_tokens=new_tokens)]

    def answered(self, processors: Processors) -> list[list[Medium]]:
        """The sounds and pictures, by kind and domain.

        Args:
            processors: Those of the model.

        Raises:
            InputError: If a file cannot be used.
        """
        return read_media(self.media, processors, new_tokens=self.answer_tokens or DEFAULT_ANSWER_TOKENS)

    def questions(self, processors: Processors) -> list[Question]:
        """The questions of all files.

        Args:
            processors: Those of the model.

        Raises:
            InputError: If a file cannot be used.
        """
        new_tokens = self.answer_tokens or DEFAULT_ANSWER_TOKENS
        files = dict.fromkeys(str(path) for path in self.exact_match)
        return [question for path in files for question in read_questions(path, processors, new_tokens=new_tokens)]
