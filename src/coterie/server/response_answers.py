"""Completions in the shape of ``/v1/responses``, whole and as streams."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, cast

from coterie.generation.tickets import Done, Failed, Part, Piece
from coterie.server.identity import current, new_id
from coterie.server.progress import PromptProgress
from coterie.server.refusals import refusal_of
from coterie.server.schemas.answers import ResponseResource
from coterie.server.streams import DONE, event

if TYPE_CHECKING:
    from coterie.generation.answers import ToolCall
    from coterie.generation.completion import Completion
    from coterie.server.choices import Choices, Numbered
    from coterie.server.schemas.fields import Fields
    from coterie.server.schemas.responses import ResponseRequest
    from coterie.server.service import Service

Item = dict[str, Any]


class Responses:
    """Makes what answers a request, as it is at one time or another.

    Args:
        service: Who answers.
        asked: The request, which every answer repeats.
    """

    def __init__(self, service: Service, asked: ResponseRequest) -> None:
        config = asked.wishes(None).generation_config(service.engine.opened.model.generation_config)
        said = asked.reasoning
        self._same: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": current().created,
            "background": False,
            "error": None,
            "frequency_penalty": asked.frequency_penalty or 0.0,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": service.most(asked.max_output_tokens),
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": service.name,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "presence_penalty": asked.presence_penalty or 0.0,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None if said is None else said.effort, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            # What it comes to where the request does not say: greedy choice is a temperature of 0.
            "temperature": (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0,
            "text": {"format": _repeated(asked.text.format) if asked.text and asked.text.format else {"type": "text"}},
            "tool_choice": _repeated(asked.tool_choice) if asked.tool_choice else "auto",
            "tools": [tool.as_said() for tool in asked.tools or ()],
            "top_logprobs": 0,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }

    def unfinished(self) -> ResponseResource:
        """Before the first token."""
        return self._made("in_progress", [])

    def whole(self, completion: Completion, output: Sequence[Item] | None = None) -> ResponseResource:
        """The end.

        Args:
            completion: What was generated.
            output: Its items, if they have been told; else new ones.
        """
        cut = completion.finish_reason != "stop"
        status = "incomplete" if cut else "completed"
        prompt, new = completion.prompt_tokens, len(completion.token_ids)
        return self._made(
            status, _items(completion, status) if output is None else output,
            completed_at=int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage={
                "input_tokens": prompt,
                "input_tokens_details": {
                    "cached_tokens": completion.reused_tokens, "cache_write_tokens": completion.kept_tokens,
                },
                # Of the tokens of an answer it is not known which were thought.
                "output_tokens": new, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + new,
            },
        )  # fmt: skip

    def failed(self, error: BaseException, output: Sequence[Item]) -> ResponseResource:
        """The end, where something went wrong."""
        refusal = refusal_of(error)
        code = refusal.code or ("invalid_prompt" if refusal.status < 500 else "server_error")
        return self._made("failed", output, error={"code": code, "message": refusal.message})

    def _made(self, status: str, output: Sequence[Item], **more: Any) -> ResponseResource:
        made = {**self._same, "completed_at": None, "usage": None, "status": status, "output": list(output)} | more
        return cast(ResponseResource, made)


class ResponseStream:
    """Writes a stream: numbered events, from which a client can build the answer as it grows.

    Args:
        responses: Makes the answer.
        progress: Whether it is told how far the prompt has been read.
    """

    def __init__(self, responses: Responses, *, progress: bool = False) -> None:
        self._progress = progress
        self._responses = responses
        self._number = -1
        self._output: list[Item] = []
        self._open: Part | None = None

    async def __call__(self, events: AsyncGenerator[Numbered], choices: Choices) -> AsyncGenerator[bytes]:
        """The events of the stream."""
        begun = self._responses.unfinished()
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        reading = PromptProgress(choices, wanted=self._progress)
        async for number, one in events:
            if (read := reading.of(number, one)) is not None:
                yield self._event("response.in_progress", response=begun, prompt_progress=read)
            match one:
                case Piece(part=part, text=text):
                    for data in self._piece(part, text):
                        yield data
                case Done(completion):
                    for data in self._end(completion):
                        yield data
                case Failed(error):
                    yield self._event("response.failed", response=self._responses.failed(error, self._output))
                case _:
                    pass
        yield DONE

    def _piece(self, part: Part, text: str) -> list[bytes]:
        told: list[bytes] = []
        if self._open != part:
            told += self._close("completed")
            self._open = part
            item = _message("", "in_progress") if part == "text" else _reasoning("", "in_progress")
            content, item["content"] = item["content"], []
            told.append(self._added(item))
            told.append(self._of_part("response.content_part.added", part=dict(content[0])))
            item["content"] = content
        self._output[-1]["content"][0]["text"] += text
        told.append(self._of_part(f"response.{_kind(part)}.delta", delta=text, **_no_logprobs(part)))
        return told

    def _close(self, status: str) -> list[bytes]:
        """Ends the item that text was added to."""
        if self._open is None:
            return []
        part, item = self._open, self._output[-1]
        self._open, item["status"] = None, status
        content = item["content"][0]
        return [
            self._of_part(f"response.{_kind(part)}.done", text=content["text"], **_no_logprobs(part)),
            self._of_part("response.content_part.done", part=content),
            self._event("response.output_item.done", output_index=len(self._output) - 1, item=item),
        ]

    def _called(self, call: ToolCall) -> list[bytes]:
        item = _called(call)
        whole = self._added(item | {"arguments": "", "status": "in_progress"})
        self._output[-1] = item
        place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        arguments = item["arguments"]
        return [
            whole,
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]

    def _end(self, completion: Completion) -> list[bytes]:
        told = [] if self._output or completion.tool_calls else self._piece("text", "")
        status = "completed" if completion.finish_reason == "stop" else "incomplete"
        told += self._close("completed" if completion.tool_calls else status)
        for call in completion.tool_calls:
            told += self._called(call)
        whole = self._responses.whole(completion, self._output)
        return [*told, self._event(f"response.{status}", response=whole)]

    def _added(self, item: Item) -> bytes:
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _of_part(self, kind: str, **facts: Any) -> bytes:
        """An event about the text that grows: the only part of the last item."""
        item = self._output[-1]
        return self._event(kind, item_id=item["id"], output_index=len(self._output) - 1, content_index=0, **facts)

    def _event(self, kind: str, **facts: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **facts}, kind)


def _items(completion: Completion, status: str) -> list[Item]:
    """An answer as items."""
    made = [_reasoning(completion.reasoning, "completed")] if completion.reasoning else []
    if completion.text or not (made or completion.tool_calls):
        made.append(_message(completion.text, "completed" if completion.tool_calls else status))
    return made + [_called(one) for one in completion.tool_calls]


def _message(text: str, status: str) -> Item:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": new_id("msg_"), "status": status, "role": "assistant", "content": content}


def _reasoning(text: str, status: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": new_id("rs_"), "status": status, "summary": [], "content": content}


def _called(call: ToolCall) -> Item:
    return {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_"), "name": call.name,
            "arguments": call.arguments, "status": "completed"}  # fmt: skip


def _repeated(said: Fields | str) -> Any:
    """Something of a request, as its answer repeats it."""
    return said if isinstance(said, str) else said.model_dump(by_alias=True, exclude_none=True)


def _kind(part: Part) -> str:
    """What events about it are called."""
    return "output_text" if part == "text" else "reasoning_text"


def _no_logprobs(part: Part) -> dict[str, Any]:
    return {"logprobs": []} if part == "text" else {}
