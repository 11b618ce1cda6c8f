"""Conversations, as OpenAI's newer clients ask. Nothing is kept: a request brings all of its conversation."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.generation.chat_options import ChatOptions
from coterie.server.operations import Operation
from coterie.server.refusals import Refusal
from coterie.server.response_answers import Responses, ResponseStream
from coterie.server.response_items import from_items
from coterie.server.schemas.answers import ResponseResource
from coterie.server.schemas.fields import read
from coterie.server.schemas.responses import ResponseRequest
from coterie.server.service import Service
from coterie.server.streams import COMMENT_PING
from coterie.server.wishes import Wish


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/responses", summary="Answers a conversation.", handler=_answer,
            asked=ResponseRequest, answered=ResponseResource, streams=True,
        )
    ]  # fmt: skip


async def _answer(service: Service, request: Request) -> Any:
    async with service.bodies.json(request) as body:
        asked = read(ResponseRequest, body)
        service.check_model(asked.model)
        messages, media = from_items(asked.input, asked.instructions)
        media.show(asked)
    asked.input = ""
    sampling = asked.wishes(service.most(asked.max_output_tokens))
    make = partial(service.prompts.of_messages, messages, media, asked.toolbox, told_of_thinking(service, asked))
    wishes = [Wish(prepare=partial(make, wanted=sampling.grammar), sampling=sampling)]
    responses = Responses(service, asked)
    if asked.stream:
        return await service.stream(
            request, wishes, ResponseStream(responses, progress=bool(asked.return_progress)), ping=COMMENT_PING
        )
    (done,) = await service.whole(request, wishes)
    return responses.whole(done.completion)


def told_of_thinking(service: Service, asked: ResponseRequest) -> ChatOptions | None:
    """What the template is told of thinking."""
    effort = None if asked.reasoning is None else asked.reasoning.effort
    if effort is None:
        return None
    try:
        return service.prompts.options({"reasoning_effort": effort})
    except Refusal as refusal:
        refusal.param, param = "reasoning.effort", str(refusal.param)
        refusal.message = refusal.message.replace(param, refusal.param, 1)
        raise
