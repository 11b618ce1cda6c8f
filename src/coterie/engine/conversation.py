"""A conversation with a model: remembers the turns, streams the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.engine.chat import chat_inputs, chat_template
from coterie.engine.completion import Completion, complete
from coterie.engine.processors import Processors
from coterie.engine.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Conversation:
    """The turns between a user and a model.

    Every answer is generated from the whole conversation. Where the model has no chat template, the turns so far, one
    per line, are the text that it continues.

    Args:
        model: From :func:`coterie.load`.
        processors: Of its directory.
        sampling: How tokens are chosen. With a seed, turn n uses seed + n.
        system: A system message, kept over :meth:`reset`.

    Attributes:
        templated: Whether the model has a chat template.
        messages: The turns so far, as :func:`~coterie.engine.chat.chat_inputs` takes them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processors: Processors,
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
    ) -> None:
        self._model = model
        self._processors = processors
        self._sampling = sampling or Sampling()
        self._turn = 0
        self._first: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.templated = chat_template(processors) is not None
        self.messages = list(self._first)

    def ask(
        self,
        text: str,
        *,
        images: Sequence[str | Path] = (),
        audios: Sequence[str | Path] = (),
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Completion:
        """Takes a turn and returns the answer.

        An answer that was stopped is kept as far as it came; a turn that failed, or was stopped before the first
        token, is as if it had not been.

        Args:
            text: What the user says; may be empty if there is a picture or sound.
            images: Picture files shown before the text.
            audios: WAV files played before the text.
            on_text: As in :func:`~coterie.engine.completion.complete`.
            should_stop: As in :func:`~coterie.engine.completion.complete`.

        Raises:
            InputError: If a file cannot be used or the template refuses the conversation.
            ContextLengthError: If the conversation has become longer than the memory budget was made for.
        """
        parts = [{"type": "image", "path": str(path)} for path in images]
        parts += [{"type": "audio", "path": str(path)} for path in audios]
        if text:
            parts.append({"type": "text", "text": text})
        asked = [*self.messages, {"role": "user", "content": parts}]
        sampling = self._sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=(sampling.seed + self._turn) % 2**63)
        answer = complete(
            self._model,
            self._processors.tokenizer,
            chat_inputs(self._processors, asked),
            sampling,
            on_text=on_text,
            should_stop=should_stop,
        )
        if answer.token_ids:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
            self._turn += 1
        return answer

    def reset(self) -> None:
        """Forgets all turns but the system message."""
        self.messages = list(self._first)
        self._turn = 0
