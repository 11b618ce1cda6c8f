"""Prompts that a model continues greedily: always with its most probable token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from coterie.errors import InputError
from coterie.evaluate.texts import Text
from coterie.generation.completion import complete
from coterie.generation.inputs import token_inputs
from coterie.generation.sampling import Sampling

if TYPE_CHECKING:
    from coterie.generation.processors import Processors


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Some tokens of a text, to be continued.

    Attributes:
        text: The text.
        start: Where in it the prompt begins.
        tokens: Tokens of the prompt.
        new_tokens: The most tokens to continue it with.
    """

    text: Text
    start: int
    tokens: int
    new_tokens: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens, after the one that begins every text where there is one."""
        return (*self.text.prefix, *self.text.ids[self.start : self.start + self.tokens])

    @property
    def following_ids(self) -> tuple[int, ...]:
        """What the text itself goes on with."""
        end = self.start + self.tokens
        return self.text.ids[end : end + self.new_tokens]

    @property
    def digest(self) -> str:
        """Hex digits that differ if a model may continue it differently."""
        return hashlib.sha256(repr((self.ids, self.new_tokens)).encode()).hexdigest()

    @property
    def length(self) -> int:
        """Tokens of the whole sequence at most."""
        return len(self.text.prefix) + self.tokens + self.new_tokens

    def inputs(self, processors: Processors) -> Any:
        """What the model is given."""
        return token_inputs(processors, self.ids)


def cut_prompts(text: Text, count: int, *, tokens: int, new_tokens: int) -> list[Prompt]:
    """Prompts at equal distances in a text, such that none has a token of another or of another's continuation.

    Args:
        text: The text.
        count: How many.
        tokens: Tokens of each.
        new_tokens: The most tokens to continue each with.

    Raises:
        InputError: If the text is too short for so many.
    """
    room = len(text.ids) // (tokens + new_tokens)
    if room < count:
        raise InputError(
            f"{text.name} has room for {room} prompts of {tokens} tokens that are continued with {new_tokens}, not for "
            f"{count}.",
            advice="Give a longer text, or ask for fewer or shorter continuations.",
            path=text.name,
            room=room,
        )
    step = len(text.ids) // count
    return [Prompt(text=text, start=number * step, tokens=tokens, new_tokens=new_tokens) for number in range(count)]


class Prompted(Protocol):
    """Something that a model goes on with: a piece of a text, or a question."""

    @property
    def new_tokens(self) -> int:
        """The most tokens to continue it with."""

    @property
    def length(self) -> int:
        """Tokens of the whole sequence at most."""

    @property
    def digest(self) -> str:
        """Hex digits that differ if a model may continue it differently."""

    def inputs(self, processors: Processors) -> Any:
        """What the model is given."""


def continue_greedily(model: Any, tokenizer: Any, inputs: Any, new_tokens: int) -> tuple[int, ...]:
    """The tokens that a model continues a prompt with, as ``coterie generate --greedy`` does.

    Args:
        model: From :func:`coterie.load`.
        tokenizer: That of its directory.
        inputs: The prompt, as of :meth:`Prompted.inputs`.
        new_tokens: The most tokens to continue it with.

    Returns:
        The new tokens; the one that ends the answer, if one does, included.

    Raises:
        CoterieError: As :func:`~coterie.generation.completion.complete`.
    """
    sampling = Sampling(max_new_tokens=new_tokens, greedy=True)
    return complete(model, tokenizer, inputs, sampling).token_ids


def equal_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same before the first that differs, or before either ends."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
