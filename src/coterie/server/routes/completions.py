"""Texts to continue, as OpenAI's clients ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.server.openai_answers import OpenAIStream, whole
from coterie.server.openai_choices import TextAnswers
from coterie.server.operations import Operation
from coterie.server.schemas.answers import TextCompletion
from coterie.server.schemas.completions import CompletionRequest
from coterie.server.schemas.fields import read
from coterie.server.schemas.sampling import of_choice
from coterie.server.service import Service
from coterie.server.streams import COMMENT_PING
from coterie.server.wishes import Wish


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/completions", summary="Continues a text.", handler=_complete,
            asked=CompletionRequest, answered=TextCompletion, streams=True,
        )
    ]  # fmt: skip


async def _complete(service: Service, request: Request) -> Any:
    async with service.bodies.json(request) as body:
        asked = read(CompletionRequest, body)
        service.check_model(asked.model)
    # Of a prompt that is only read, the tokens are told whether or not they are wanted: nothing else is to be done.
    of_prompt = (asked.logprobs or 0) if asked.echo and (asked.logprobs is not None or asked.max_tokens == 0) else None
    sampling = asked.wishes(asked.max_tokens, logprobs=asked.logprobs, prompt_logprobs=of_prompt)
    wishes = [
        Wish(
            prepare=partial(service.prompts.of_text, prompt),
            sampling=of_choice(sampling, number),
            provenance=asked.wants_provenance,
            repeated=asked.choices > 1,
            domain=service.domain(asked.domain),
        )
        for prompt in asked.prompts
        for number in range(asked.choices)
    ]
    shown = [prompt for prompt in asked.prompts for _ in range(asked.choices)]
    writing = TextAnswers(service.tokens, shown if asked.echo else None, logprobs=asked.logprobs is not None)
    if asked.stream:
        events = OpenAIStream(
            service, writing, usage=asked.wants_usage, each=asked.choices, progress=bool(asked.return_progress)
        )
        return await service.stream(request, wishes, events, ping=COMMENT_PING)
    return whole(service, writing, await service.whole(request, wishes), each=asked.choices)
