"""How many tokens a conversation has, before it is answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import Request

from coterie.generation.asked import Prompt
from coterie.server.operations import Operation
from coterie.server.prompts import from_openai
from coterie.server.response_items import from_items
from coterie.server.routes.responses import told_of_thinking
from coterie.server.schemas.answers import InputTokens
from coterie.server.schemas.chat import ChatRequest
from coterie.server.schemas.fields import read
from coterie.server.schemas.responses import ResponseRequest
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/chat/completions/input_tokens", summary="Says how many tokens a conversation has.",
            handler=_of_chat, asked=ChatRequest, answered=InputTokens,
        ),
        Operation(
            path="/v1/responses/input_tokens", summary="Says how many tokens a conversation has.",
            handler=_of_response, asked=ResponseRequest, answered=InputTokens,
        ),
    ]  # fmt: skip


async def _of_chat(service: Service, request: Request) -> InputTokens:
    async with service.bodies.json(request) as body:
        asked = read(ChatRequest, body)
        service.check_model(asked.model)
        messages, media = from_openai(asked.messages, service.said(request))
        media.show(asked)
    options = service.prompts.options(asked.variables)
    return await _counted(
        service, request, partial(service.prompts.of_messages, messages, media, asked.toolbox, options)
    )


async def _of_response(service: Service, request: Request) -> InputTokens:
    async with service.bodies.json(request) as body:
        asked = read(ResponseRequest, body)
        service.check_model(asked.model)
        messages, media = from_items(asked.input, asked.instructions)
        media.show(asked)
    options = told_of_thinking(service, asked)
    return await _counted(
        service, request, partial(service.prompts.of_messages, messages, media, asked.toolbox, options)
    )


async def _counted(service: Service, request: Request, prepare: Callable[[], Prompt]) -> InputTokens:
    return {"object": "response.input_tokens", "input_tokens": await service.prompt_tokens(request, prepare)}
