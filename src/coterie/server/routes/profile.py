"""Which experts handle what, as the profile knows that the server was given."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from starlette.requests import Request

from coterie.hf.tokenizer import decode_tokens
from coterie.profiles.heavy_tokens import quoted
from coterie.server.explorer import Explorer
from coterie.server.operations import Operation
from coterie.server.refusals import Refusal
from coterie.server.schemas.dashboard import Answered, ExpertQuestion, ProfileQuestion, ProfileSummary
from coterie.server.schemas.fields import read
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/coterie/profile", summary="Says what was recorded in the profile.", method="GET",
            handler=_summary, answered=ProfileSummary,
        ),
        Operation(
            path="/coterie/profile/rank", summary="Ranks experts by how much they handle a domain or modality.",
            handler=_rank, asked=ProfileQuestion, answered=Answered,
        ),
        Operation(
            path="/coterie/profile/expert", summary="Says what one expert does.", handler=_expert,
            asked=ExpertQuestion, answered=Answered,
        ),
    ]  # fmt: skip


def _explorer(service: Service) -> Explorer:
    if service.explorer is None:
        raise Refusal(404, "This server was given no profile: coterie serve MODEL --profile FILE.", code="no_profile")
    return service.explorer


async def _summary(service: Service, _: Request) -> ProfileSummary:
    return cast(ProfileSummary, await _explorer(service).ask("summary"))


async def _rank(service: Service, request: Request) -> Answered:
    async with service.bodies.json(request) as body:
        asked = read(ProfileQuestion, body)
    return await _explorer(service).ask("rank", **asked.model_dump())


async def _expert(service: Service, request: Request) -> Answered:
    async with service.bodies.json(request) as body:
        asked = read(ExpertQuestion, body)
    card = await _explorer(service).ask("expert", **asked.model_dump())
    # The profile is the model's, so its tokens are, too.
    tokens: list[dict[str, Any]] = card["top_tokens"]
    await service.engine.aside(partial(_name_tokens, service, tokens))
    return card


def _name_tokens(service: Service, tokens: list[dict[str, Any]]) -> None:
    tokenizer = service.engine.opened.processors.tokenizer
    known = len(tokenizer)
    for token in tokens:
        number = token["token_id"]
        token["text"] = quoted(decode_tokens(tokenizer, [number])) if number < known else None
