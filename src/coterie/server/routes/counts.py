"""How many tokens a conversation of texts has, before it is answered."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from coterie.generation.chat_options import ChatOptions
from coterie.generation.toolbox import Toolbox
from coterie.server.media import Media
from coterie.server.operations import Operation
from coterie.server.prompts import Messages, from_openai
from coterie.server.refusals import Refusal
from coterie.server.response_items import from_items
from coterie.server.routes.responses import told_of_thinking
from coterie.server.schemas.answers import InputTokens
from coterie.server.schemas.chat import ChatRequest
from coterie.server.schemas.fields import read
from coterie.server.schemas.responses import ResponseRequest
from coterie.server.service import Service


def operations(service: Service) -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/chat/completions/input_tokens", summary="Says how many tokens a conversation has.",
            handler=partial(_of_chat, service), asked=ChatRequest, answered=InputTokens,
        ),
        Operation(
            path="/v1/responses/input_tokens", summary="Says how many tokens a conversation has.",
            handler=partial(_of_response, service), asked=ResponseRequest, answered=InputTokens,
        ),
    ]  # fmt: skip


async def _of_chat(service: Service, request: Request) -> InputTokens:
    async with service.bodies.json(request) as body:
        asked = read(ChatRequest, body)
        service.check_model(asked.model)
        messages, media = from_openai(asked.messages)
    return await _counted(service, request, messages, media, asked.toolbox, service.prompts.options(asked.variables))


async def _of_response(service: Service, request: Request) -> InputTokens:
    async with service.bodies.json(request) as body:
        asked = read(ResponseRequest, body)
        service.check_model(asked.model)
        messages, media = from_items(asked.input, asked.instructions)
    return await _counted(service, request, messages, media, asked.toolbox, told_of_thinking(service, asked))


async def _counted(
    service: Service,
    request: Request,
    messages: Messages,
    media: Media,
    tools: Toolbox,
    options: ChatOptions | None,
) -> InputTokens:
    if media:
        param = next(iter([*media.pictures, *media.sounds]))
        raise Refusal(
            400, f"{param}: the tokens of pictures and sounds are not counted yet.", param=param, code="unsupported"
        )
    prompt = await service.aside(request, partial(service.prompts.of_messages, messages, media, tools, options))
    return {"object": "response.input_tokens", "input_tokens": prompt.tokens or 0}
