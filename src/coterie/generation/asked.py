"""What an engine can be asked to continue, as the prompt that it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from coterie.generation.answers import AnswerReader
from coterie.generation.chat import chat_prompt
from coterie.generation.inputs import build_inputs, token_inputs
from coterie.generation.opened import OpenModel
from coterie.generation.parsed_answers import reading
from coterie.generation.preparers import UNKNOWN_NBYTES
from coterie.generation.tool_calls import CallText
from coterie.generation.toolbox import Toolbox

if TYPE_CHECKING:
    from transformers import BatchFeature

    from coterie.generation.grammar import Grammar

_TOKEN_NBYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is to continue, made ready as far as it can be while the model works for others.

    Attributes:
        inputs: Makes the model's inputs, a batch of one; decodes pictures and sounds, if there is room for that.
        tokens: Its length, where it is known before. Then :attr:`inputs` is quick, and gives the same each time.
        reader: Tells the parts of the answer apart, where it has parts.
        calls: Takes the calls of tools out of the text, where there are tools.
        form: The form of the answer in the model's own words, where it has to have one.
        ends: Texts that end the answer beside those of the request.
    """

    inputs: Callable[[], BatchFeature]
    tokens: int | None
    reader: AnswerReader | None = None
    calls: CallText | None = None
    form: Grammar | None = None
    ends: tuple[str, ...] = ()


class Measured(Exception):
    """What ends a request of which no more is wanted than the length of its prompt.

    Attributes:
        tokens: The length.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(f"The prompt has {tokens} tokens.")
        self.tokens = tokens


def measuring(prompt: Prompt) -> Prompt:
    """A prompt whose request ends with :class:`Measured` when its pictures and sounds have been decoded."""

    def measure() -> BatchFeature:
        raise Measured(int(prompt.inputs()["input_ids"].shape[1]))

    return replace(prompt, inputs=measure)


Asked = str | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Callable[[], Prompt]
"""A text, token ids, messages of a conversation, a model's inputs, or what makes a :class:`Prompt`."""


def nbytes_of(asked: Asked) -> int:
    """How long a text is, in round figures: by that it is seen who waits for whom while prompts are made ready."""
    if isinstance(asked, str):
        return len(asked)
    if callable(asked):
        return UNKNOWN_NBYTES
    if isinstance(asked, Mapping):
        return 0  # it is ready
    return sum(nbytes_of(one) if isinstance(one, str | Sequence) else _TOKEN_NBYTES for one in map(_said, asked))


def _said(part: Any) -> Any:
    """Of a message, what it says; of a part of that, its text."""
    return part.get("content", part.get("text", "")) or "" if isinstance(part, Mapping) else part


def preparing(opened: OpenModel, asked: Asked) -> Callable[[], Prompt]:
    """What makes a prompt of it, in a thread of its own."""
    if callable(asked):
        return asked
    if isinstance(asked, str):
        return lambda: ready(build_inputs(opened.processors, asked))
    if isinstance(asked, Mapping):
        return partial(_given, asked)
    if asked and isinstance(asked[0], Mapping):
        return partial(_conversation, opened, asked)
    return lambda: ready(token_inputs(opened.processors, asked))  # type: ignore[arg-type]


def ready(inputs: BatchFeature, **more: Any) -> Prompt:
    """A prompt whose inputs are there."""
    return Prompt(inputs=lambda: inputs, tokens=int(inputs["input_ids"].shape[1]), **more)


def _given(inputs: Mapping[str, Any]) -> Prompt:
    from transformers import BatchFeature

    return ready(BatchFeature(dict(inputs)))


def _conversation(opened: OpenModel, messages: Sequence[Any]) -> Prompt:
    made = chat_prompt(opened.processors, messages)
    reader, _ = reading(opened.processors.tokenizer, made.template, made.text, Toolbox())
    if made.media:
        return Prompt(inputs=partial(made.inputs, opened.processors), tokens=None, reader=reader)
    return ready(made.inputs(opened.processors), reader=reader)
