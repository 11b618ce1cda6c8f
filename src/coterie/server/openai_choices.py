"""One answer of several in OpenAI's shapes: as a conversation has it, and as a continued text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from coterie.server.identity import new_id
from coterie.server.schemas.answers import (
    AnswerMessage,
    Call,
    ChatChoice,
    ChatLogprobs,
    Finish,
    LikelyToken,
    TextChoice,
    TextLogprobs,
    ToldToken,
)

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.logprobs import TokenLogprob
    from coterie.generation.tickets import Done, Piece, SoundChunk
    from coterie.hf.token_bytes import TokenBytes

Choice = dict[str, Any]
"""What a chunk of a stream says of an answer."""


class ChatAnswers:
    """Writes the answers to a conversation.

    Args:
        tokens: The model's tokens one by one.
        logprobs: Whether their log probabilities are told.
    """

    prefix: ClassVar = "chatcmpl"
    whole: ClassVar = "chat.completion"
    chunk: ClassVar = "chat.completion.chunk"

    def __init__(self, tokens: TokenBytes, *, logprobs: bool = False) -> None:
        self._tokens = tokens
        self._logprobs = logprobs
        self._told: defaultdict[int, int] = defaultdict(int)

    def choice(self, number: int, done: Done) -> ChatChoice:
        """A whole answer."""
        completion = done.completion
        calls = _calls(completion)
        message: AnswerMessage = {"role": "assistant", "content": completion.text or None if calls else completion.text}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": number, "message": message, "logprobs": self._of(completion.logprobs),
            "finish_reason": self._finish(done),
        }  # fmt: skip

    def opening(self, number: int) -> Iterator[Choice]:
        """What a stream begins with."""
        yield delta_of(number, {"role": "assistant", "content": None})

    def nothing(self, number: int) -> Choice:
        """Nothing of an answer, where something else is told."""
        return delta_of(number, {})

    def piece(self, number: int, piece: Piece) -> Iterator[Choice]:
        """Some of an answer."""
        self._told[number] += len(piece.logprobs)
        name = "content" if piece.part == "text" else "reasoning_content"
        yield delta_of(number, {name: piece.text}, self._of(piece.logprobs) if piece.logprobs else None)

    def sound(self, number: int, sound: SoundChunk) -> Iterator[Choice]:
        """Some of its sound: an answer that nobody wanted spoken has none."""
        yield from ()

    def ending(self, number: int, done: Done) -> Iterator[Choice]:
        """What was not told before, and why it ended."""
        completion = done.completion
        left = completion.logprobs[self._told[number] :]
        calls = [{"index": place, **call} for place, call in enumerate(_calls(completion))]
        if calls or left:
            yield delta_of(number, {"tool_calls": calls} if calls else {}, self._of(left) if left else None)
        yield delta_of(number, {}) | {"finish_reason": self._finish(done)}

    def _finish(self, done: Done) -> Finish:
        return finish_of(done.completion)

    def _of(self, logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return {"content": [self._told_token(one) for one in logprobs], "refusal": None}

    def _told_token(self, one: TokenLogprob) -> ToldToken:
        top = [self._likely(token_id, logprob) for token_id, logprob in one.top]
        return {**self._likely(one.token_id, one.logprob or 0.0), "top_logprobs": top}

    def _likely(self, token_id: int, logprob: float) -> LikelyToken:
        return {
            "token": self._tokens.text(token_id), "logprob": logprob, "bytes": [*self._tokens.of(token_id)],
        }  # fmt: skip


class TextAnswers:
    """Writes continuations of texts.

    Args:
        tokens: The model's tokens one by one.
        echoed: The prompt of each, a text or tokens, where it is to come before what continues it.
        logprobs: Whether the tokens' log probabilities are told.
    """

    prefix: ClassVar = "cmpl"
    whole: ClassVar = "text_completion"
    chunk: ClassVar = "text_completion"

    def __init__(
        self, tokens: TokenBytes, echoed: Sequence[str | Sequence[int]] | None = None, *, logprobs: bool = False
    ) -> None:
        self._tokens = tokens
        self._echoed = echoed
        self._logprobs = logprobs
        self._told: defaultdict[int, int] = defaultdict(int)
        self._offsets: defaultdict[int, int] = defaultdict(int)
        self._echoing = {*range(len(echoed or ()))}

    def choice(self, number: int, done: Done) -> TextChoice:
        """A whole continuation."""
        completion = done.completion
        told = (*completion.prompt_logprobs, *completion.logprobs)
        return {
            "index": number, "text": self._prompt(number) + completion.text, "logprobs": self._of(number, told),
            "finish_reason": finish_of(completion),
        }  # fmt: skip

    def opening(self, number: int) -> Iterator[Choice]:
        """What a stream begins with: nothing, until something is known."""
        yield from ()

    def nothing(self, number: int) -> Choice:
        """Nothing of a continuation, where something else is told."""
        return _text(number, "", None)

    def piece(self, number: int, piece: Piece) -> Iterator[Choice]:
        """Some of a continuation."""
        self._told[number] += len(piece.logprobs)
        yield from self._echo(number, piece.prompt_logprobs)
        yield _text(number, piece.text, self._of(number, piece.logprobs))

    def sound(self, number: int, sound: SoundChunk) -> Iterator[Choice]:
        """Some of its sound: a continuation has none."""
        yield from ()

    def ending(self, number: int, done: Done) -> Iterator[Choice]:
        """What was not told before, and why it ended."""
        completion = done.completion
        yield from self._echo(number, completion.prompt_logprobs)
        left = completion.logprobs[self._told[number] :]
        if left:
            yield _text(number, "", self._of(number, left))
        yield _text(number, "", None) | {"finish_reason": finish_of(completion)}

    def _echo(self, number: int, logprobs: Sequence[TokenLogprob]) -> Iterator[Choice]:
        """The prompt, once."""
        if number in self._echoing:
            self._echoing.remove(number)
            yield _text(number, self._prompt(number), self._of(number, logprobs))

    def _prompt(self, number: int) -> str:
        if self._echoed is None:
            return ""
        prompt = self._echoed[number]
        if isinstance(prompt, str):
            return prompt
        return b"".join(self._tokens.of(token_id) for token_id in prompt).decode("utf-8", "replace")

    def _of(self, number: int, logprobs: Sequence[TokenLogprob]) -> TextLogprobs | None:
        if not self._logprobs:
            return None
        told: TextLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in logprobs:
            text = self._tokens.text(one.token_id)
            told["tokens"].append(text)
            told["token_logprobs"].append(one.logprob)
            told["top_logprobs"].append(None if one.logprob is None else self._top(one, one.logprob))
            told["text_offset"].append(self._offsets[number])
            self._offsets[number] += len(text)
        return told

    def _top(self, one: TokenLogprob, logprob: float) -> dict[str, float]:
        """The likeliest tokens and the one that came; of several with the same text, the likeliest."""
        told: dict[str, float] = {}
        for token_id, value in (*one.top, (one.token_id, logprob)):
            told.setdefault(self._tokens.text(token_id), value)
        return told


def finish_of(completion: Completion) -> Finish:
    """Why an answer ended, in OpenAI's words."""
    if completion.finish_reason != "stop":
        return "length"
    return "tool_calls" if completion.tool_calls else "stop"


def delta_of(number: int, delta: Mapping[str, Any], logprobs: ChatLogprobs | None = None) -> Choice:
    """Some of an answer to a conversation."""
    return {"index": number, "logprobs": logprobs, "finish_reason": None, "delta": delta}


def _text(number: int, text: str, logprobs: TextLogprobs | None) -> Choice:
    return {"index": number, "logprobs": logprobs, "finish_reason": None, "text": text}


def _calls(completion: Completion) -> list[Call]:
    return [
        {"id": new_id("call_"), "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in completion.tool_calls
    ]
