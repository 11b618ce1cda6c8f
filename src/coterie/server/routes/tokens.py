"""Texts as tokens, and tokens as text."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from coterie.hf.tokenizer import decode_tokens, encode_text
from coterie.server.operations import Operation
from coterie.server.schemas.answers import PlainContent, TokenList
from coterie.server.schemas.completions import DetokenizeRequest, TokenizeRequest
from coterie.server.schemas.fields import read
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/tokenize", summary="Says which tokens a text consists of.", handler=_tokenize,
            asked=TokenizeRequest, answered=TokenList,
        ),
        Operation(
            path="/detokenize", summary="Says which text tokens stand for.", handler=_detokenize,
            asked=DetokenizeRequest, answered=PlainContent,
        ),
    ]  # fmt: skip


async def _tokenize(service: Service, request: Request) -> TokenList:
    async with service.bodies.json(request) as body:
        asked = read(TokenizeRequest, body)
    tokenizer = service.engine.opened.processors.tokenizer
    work = partial(encode_text, tokenizer, asked.content, add_special_tokens=asked.add_special)
    return {"tokens": await service.engine.aside(work)}


async def _detokenize(service: Service, request: Request) -> PlainContent:
    async with service.bodies.json(request) as body:
        asked = read(DetokenizeRequest, body)
    tokenizer = service.engine.opened.processors.tokenizer
    work = partial(decode_tokens, tokenizer, asked.tokens, clean_up_tokenization_spaces=False)
    return {"content": await service.engine.aside(work)}
