"""Conversations, as OpenAI's clients ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.server.media import Media
from coterie.server.openai_answers import OpenAIStream, whole
from coterie.server.openai_choices import ChatAnswers
from coterie.server.operations import Operation
from coterie.server.prompts import Messages, from_openai
from coterie.server.schemas.answers import ChatCompletion, RenderedPrompt
from coterie.server.schemas.chat import ChatRequest, TemplateRequest
from coterie.server.schemas.fields import read
from coterie.server.schemas.sampling import of_choice
from coterie.server.service import Service
from coterie.server.speaking import asked_voice
from coterie.server.spoken_choices import SpokenAnswers
from coterie.server.streams import COMMENT_PING
from coterie.server.wishes import Wish


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/chat/completions", summary="Answers a conversation.", handler=_chat,
            asked=ChatRequest, answered=ChatCompletion, streams=True,
        ),
        Operation(
            path="/apply-template", summary="Shows a conversation as the text that the model continues.",
            handler=_template, asked=TemplateRequest, answered=RenderedPrompt,
        ),
    ]  # fmt: skip


async def _chat(service: Service, request: Request) -> Any:
    asked, messages, media = await _understood(service, request)
    options = service.prompts.options(asked.variables)
    voice = asked_voice(service, asked)
    sampling = asked.wishes(service.most(asked.most), logprobs=asked.told_logprobs)
    make = partial(service.prompts.of_messages, messages, media, asked.toolbox, options)
    wishes = [
        Wish(
            prepare=partial(make, wanted=one.grammar),
            sampling=one,
            provenance=asked.wants_provenance,
            repeated=asked.choices > 1,
            domain=service.domain(asked.domain),
            voice=voice,
        )
        for one in (of_choice(sampling, number) for number in range(asked.choices))
    ]
    writing = _writing(service, request, asked)
    if asked.stream:
        events = OpenAIStream(service, writing, usage=asked.wants_usage, progress=bool(asked.return_progress))
        return await service.stream(request, wishes, events, ping=COMMENT_PING)
    return whole(service, writing, await service.whole(request, wishes))


def _writing(service: Service, request: Request, asked: ChatRequest) -> ChatAnswers:
    """How the answers are written."""
    if not asked.speaks:
        return ChatAnswers(service.tokens, logprobs=bool(asked.logprobs))
    kind = None if asked.audio is None else asked.audio.format
    keep = partial(service.transcripts.keep, request.state.salt)
    return SpokenAnswers(service.tokens, kind=kind or ("pcm16" if asked.stream else "wav"), keep=keep)


async def _template(service: Service, request: Request) -> RenderedPrompt:
    async with service.bodies.json(request) as body:
        asked = read(TemplateRequest, body)
        messages, _ = from_openai(asked.messages, service.said(request))
    tools = [tool.plain() for tool in asked.tools or ()]
    prompt = await service.aside(request, partial(service.prompts.rendered, messages, tools))
    return {"prompt": prompt.text}


async def _understood(service: Service, request: Request) -> tuple[ChatRequest, Messages, Media]:
    """A request, and its conversation apart. What pictures were as text is in neither."""
    async with service.bodies.json(request) as body:
        asked = read(ChatRequest, body)
        service.check_model(asked.model)
        messages, media = from_openai(asked.messages, service.said(request))
        media.show(asked)
    asked.messages.clear()
    return asked, messages, media
