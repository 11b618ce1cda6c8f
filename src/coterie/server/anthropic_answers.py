"""Completions in Anthropic's shapes, whole and as streams."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from coterie.generation.tickets import Done, Failed, Part, Piece
from coterie.hf.tokenizer import decode_tokens
from coterie.server.identity import new_id
from coterie.server.refusals import refusal_of
from coterie.server.schemas.answers import AnsweredMessage, Block, MessageUsage
from coterie.server.streams import event

if TYPE_CHECKING:
    from coterie.generation.answers import ToolCall
    from coterie.generation.completion import Completion
    from coterie.server.choices import Choices, Numbered
    from coterie.server.service import Service


def message(service: Service, completion: Completion, stops: Sequence[str]) -> AnsweredMessage:
    """A whole answer."""
    content: list[Block] = []
    if completion.reasoning:
        content.append({"type": "thinking", "thinking": completion.reasoning, "signature": ""})
    if completion.text or not (content or completion.tool_calls):
        content.append({"type": "text", "text": completion.text})
    content += [_call(one) for one in completion.tool_calls]
    reason, sequence = _stop(service, completion, stops)
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": service.name,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(completion),
    }


class AnthropicStream:
    """Writes a stream: the message as it begins, its blocks, why it ended.

    Args:
        service: Who answers.
        stops: Texts that end the answer.
    """

    def __init__(self, service: Service, stops: Sequence[str]) -> None:
        self._service = service
        self._stops = stops
        self._open: Part | None = None
        self._number = -1

    async def __call__(self, events: AsyncGenerator[Numbered], choices: Choices) -> AsyncGenerator[bytes]:
        """The events of the stream."""
        begun: dict[str, Any] = {
            "id": new_id("msg_"), "type": "message", "role": "assistant", "model": self._service.name,
            "content": [], "stop_reason": None, "stop_sequence": None,
            # Of pictures it is known when they are decoded, and what is known of a prompt when the model begins with
            # it; the end of the stream says it again.
            "usage": _tokens(choices.prompt_tokens or 0),
        }  # fmt: skip
        yield event({"type": "message_start", "message": begun}, "message_start")
        async for _, one in events:
            match one:
                case Piece(part, text):
                    for data in self._piece(part, text):
                        yield data
                case Done(completion):
                    for data in self._end(completion):
                        yield data
                case Failed(error):
                    yield event(refusal_of(error).body("anthropic", choices.request_id), "error")
                case _:
                    pass

    def _piece(self, part: Part, text: str) -> list[bytes]:
        kind = "text" if part == "text" else "thinking"
        told: list[bytes] = []
        if self._open != part:
            told += self._close()
            self._open, self._number = part, self._number + 1
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            start = {"type": "content_block_start", "index": self._number, "content_block": block}
            told.append(event(start, "content_block_start"))
        delta = {"type": f"{kind}_delta", kind: text}
        told.append(
            event({"type": "content_block_delta", "index": self._number, "delta": delta}, "content_block_delta")
        )
        return told

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        return [event({"type": "content_block_stop", "index": self._number}, "content_block_stop")]

    def _called(self, block: Block) -> list[bytes]:
        partial = json.dumps(block["input"], ensure_ascii=False)
        delta = {"type": "input_json_delta", "partial_json": partial}
        start = {"type": "content_block_start", "index": self._number, "content_block": {**block, "input": {}}}
        return [
            event(start, "content_block_start"),
            event({"type": "content_block_delta", "index": self._number, "delta": delta}, "content_block_delta"),
            event({"type": "content_block_stop", "index": self._number}, "content_block_stop"),
        ]

    def _end(self, completion: Completion) -> list[bytes]:
        told = [] if self._open is not None or completion.tool_calls else self._piece("text", "")
        told += self._close()
        for one in completion.tool_calls:
            self._number += 1
            told += self._called(_call(one))
        reason, sequence = _stop(self._service, completion, self._stops)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            *told,
            event({"type": "message_delta", "delta": delta, "usage": _usage(completion)}, "message_delta"),
            event({"type": "message_stop"}, "message_stop"),
        ]


def _usage(completion: Completion) -> MessageUsage:
    """What an answer took."""
    return _tokens(
        completion.prompt_tokens, read=completion.reused_tokens, kept=completion.kept_tokens,
        new=len(completion.token_ids),
    )  # fmt: skip


def _tokens(prompt: int, *, read: int = 0, kept: int = 0, new: int = 0) -> MessageUsage:
    """Tokens in Anthropic's words, where a prompt's are counted in three parts, each token in one of them."""
    return {
        "input_tokens": prompt - read - kept,
        "cache_creation_input_tokens": kept,
        "cache_read_input_tokens": read,
        "output_tokens": new,
    }


def _call(call: ToolCall) -> Block:
    """A call, as an object is wanted; what the model wrote may be none."""
    arguments = call.as_message()["function"]["arguments"]
    given = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    return {"type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": given}


def _stop(service: Service, completion: Completion, stops: Sequence[str]) -> tuple[str, str | None]:
    """Why it ended, in Anthropic's words."""
    if completion.finish_reason != "stop":
        return "max_tokens", None
    if completion.tool_calls:
        return "tool_use", None
    tokenizer = service.engine.opened.processors.tokenizer
    text = decode_tokens(tokenizer, completion.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    return ("stop_sequence", min(found)[1]) if found else ("end_turn", None)
