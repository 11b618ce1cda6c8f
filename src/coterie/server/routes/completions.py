"""Texts to continue, as OpenAI's clients ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.server.openai_answers import OpenAIStream, text_completion
from coterie.server.operations import Operation
from coterie.server.schemas.answers import TextCompletion
from coterie.server.schemas.completions import CompletionRequest
from coterie.server.schemas.fields import read
from coterie.server.service import Service
from coterie.server.streams import COMMENT_PING
from coterie.server.wishes import Wish


def operations(service: Service) -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/completions", summary="Continues a text.", handler=partial(_complete, service),
            asked=CompletionRequest, answered=TextCompletion, streams=True,
        )
    ]  # fmt: skip


async def _complete(service: Service, request: Request) -> Any:
    async with service.bodies.json(request) as body:
        asked = read(CompletionRequest, body)
        service.check_model(asked.model)
    prompts, prompt = service.prompts, asked.prompt
    prepare = partial(prompts.of_text, prompt) if isinstance(prompt, str) else partial(prompts.of_ids, prompt)
    wish = Wish(prepare=prepare, sampling=asked.wishes(asked.max_tokens), provenance=asked.wants_provenance)
    if asked.stream:
        events = OpenAIStream(service, "text", usage=asked.wants_usage)
        return await service.stream(request, wish, events, ping=COMMENT_PING)
    return text_completion(service, await service.whole(request, wish))
