"""Conversations, as Anthropic's clients ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.generation.chat_options import ChatOptions
from coterie.server.anthropic_answers import AnthropicStream, message
from coterie.server.media import Media
from coterie.server.operations import Operation
from coterie.server.prompts import Messages, from_anthropic
from coterie.server.schemas.answers import AnsweredMessage, TokenCount
from coterie.server.schemas.fields import read
from coterie.server.schemas.messages import CountRequest, MessagesRequest
from coterie.server.service import Service
from coterie.server.streams import NAMED_PING
from coterie.server.wishes import Wish


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/messages", summary="Answers a conversation.", handler=_answer,
            asked=MessagesRequest, answered=AnsweredMessage, streams=True, dialect="anthropic",
        ),
        Operation(
            path="/v1/messages/count_tokens", summary="Says how many tokens a conversation has.",
            handler=_count, asked=CountRequest, answered=TokenCount, dialect="anthropic",
        ),
    ]  # fmt: skip


async def _answer(service: Service, request: Request) -> Any:
    asked, messages, media = await _understood(service, request)
    stops = asked.stop_sequences or ()
    sampling = asked.sampling(most=asked.max_tokens, stop=stops, grammar=asked.form)
    prepare = partial(
        service.prompts.of_messages, messages, media, asked.toolbox, _options(service, asked), wanted=asked.form
    )  # fmt: skip
    wishes = [Wish(prepare=prepare, sampling=sampling)]
    if asked.stream:
        return await service.stream(request, wishes, AnthropicStream(service, stops), ping=NAMED_PING)
    (done,) = await service.whole(request, wishes)
    return message(service, done.completion, stops)


async def _count(service: Service, request: Request) -> TokenCount:
    async with service.bodies.json(request) as body:
        asked = read(CountRequest, body)
        service.check_model(asked.model)
        messages, media = from_anthropic(asked.messages, asked.system)
        media.show(asked)
    make = partial(service.prompts.of_messages, messages, media, asked.toolbox, _options(service, asked))
    return {"input_tokens": await service.prompt_tokens(request, make)}


def _options(service: Service, asked: CountRequest) -> ChatOptions | None:
    """What the template is told."""
    return None if asked.thinking is None else service.prompts.without_thinking()


async def _understood(service: Service, request: Request) -> tuple[MessagesRequest, Messages, Media]:
    """A request, and its conversation apart. What pictures were as text is in neither."""
    async with service.bodies.json(request) as body:
        asked = read(MessagesRequest, body)
        service.check_model(asked.model)
        messages, media = from_anthropic(asked.messages, asked.system)
        media.show(asked)
    asked.messages.clear()
    return asked, messages, media
