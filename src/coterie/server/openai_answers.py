"""Completions in OpenAI's shapes, whole and as streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from coterie.generation.tickets import Done, Event, Failed, Piece, Ticket
from coterie.server.identity import current, new_id
from coterie.server.refusals import refusal_of
from coterie.server.schemas.answers import (
    AnswerMessage,
    Call,
    ChatCompletion,
    Chunk,
    Finish,
    More,
    TextCompletion,
    Usage,
)
from coterie.server.streams import DONE, event

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.server.service import Service

Kind = Literal["chat", "text"]
_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_CHUNKS = {"chat": "chat.completion.chunk", "text": "text_completion"}


def chat_completion(service: Service, done: Done) -> ChatCompletion:
    """A whole answer."""
    completion = done.completion
    calls = _calls(completion)
    message: AnswerMessage = {"role": "assistant", "content": completion.text or None if calls else completion.text}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if calls:
        message["tool_calls"] = calls
    return {
        "id": _new_id("chat"),
        "object": "chat.completion",
        "created": current().created,
        "model": service.name,
        "system_fingerprint": service.fingerprint,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(completion)}],
        "usage": _usage(completion),
        "coterie": _more(done),
    }


def text_completion(service: Service, done: Done) -> TextCompletion:
    """A whole continuation."""
    completion = done.completion
    return {
        "id": _new_id("text"),
        "object": "text_completion",
        "created": current().created,
        "model": service.name,
        "system_fingerprint": service.fingerprint,
        "choices": [{"index": 0, "text": completion.text, "logprobs": None, "finish_reason": _finish(completion)}],
        "usage": _usage(completion),
        "coterie": _more(done),
    }


class OpenAIStream:
    """Writes a stream: the role first, then pieces, then why it ended, and, if it is wanted, what it took.

    Args:
        service: Who answers.
        kind: Whether a conversation is answered or a text continued.
        usage: Whether what it took is told at the end.
    """

    def __init__(self, service: Service, kind: Kind, *, usage: bool) -> None:
        self._kind = kind
        self._usage = usage
        self._same: Chunk = {
            "id": _new_id(kind),
            "object": _CHUNKS[kind],
            "created": current().created,
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    async def __call__(self, events: AsyncGenerator[Event], ticket: Ticket) -> AsyncGenerator[bytes]:
        """The events of the stream."""
        if self._kind == "chat":
            yield self._chunk({"role": "assistant", "content": None})
        async for one in events:
            match one:
                case Piece(part, text):
                    yield self._chunk({"content" if part == "text" else "reasoning_content": text}, text)
                case Done(completion):
                    more = _more(one)
                    if calls := _calls(completion):
                        yield self._chunk({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
                    yield self._chunk({}, finish=completion, more=more)
                    if self._usage:
                        yield event({**self._same, "choices": [], "usage": _usage(completion)})
                case Failed(error):
                    yield event(refusal_of(error).body("openai", ticket.name))
                case _:
                    pass
        yield DONE

    def _chunk(
        self, delta: Mapping[str, Any], text: str = "", *, finish: Completion | None = None, more: Any = None
    ) -> bytes:
        choice: Chunk = {"index": 0, "logprobs": None, "finish_reason": None if finish is None else _finish(finish)}
        choice |= {"delta": delta} if self._kind == "chat" else {"text": text}
        chunk = {**self._same, "choices": [choice]}
        if self._usage:
            chunk["usage"] = None
        if more is not None:
            chunk["coterie"] = more
        return event(chunk)


def _new_id(kind: Kind) -> str:
    return new_id(f"{_PREFIXES[kind]}-")


def _more(done: Done) -> More:
    """What OpenAI's shape has no room for."""
    more: More = {"finish_reason": done.completion.finish_reason}
    if done.provenance is not None:
        more["provenance"] = _without_none(asdict(done.provenance))
    return more


def _without_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in figures.items()
        if value is not None
    }


def _usage(completion: Completion) -> Usage:
    prompt, new = completion.prompt_tokens, len(completion.token_ids)
    # An answer that is made once more, after a replica was lost, has to be the same to the byte.
    cached = 0 if current().seeded else completion.reused_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _finish(completion: Completion) -> Finish:
    """Why it ended, in the three words that clients know."""
    if completion.tool_calls:
        return "tool_calls"
    return "stop" if completion.finish_reason == "stop" else "length"


def _calls(completion: Completion) -> list[Call]:
    return [
        {"id": new_id("call_"), "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in completion.tool_calls
    ]
