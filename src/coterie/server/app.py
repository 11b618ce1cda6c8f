"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

import coterie
from coterie.generation.engine import Engine
from coterie.server import openapi, pages
from coterie.server.bodies import Bodies
from coterie.server.domains import Domains
from coterie.server.explorer import Explorer
from coterie.server.gate import Gate, Hosts
from coterie.server.keys import Keys
from coterie.server.meters import Meters
from coterie.server.operations import Operation
from coterie.server.origins import Origins
from coterie.server.refusals import Refusal
from coterie.server.routes import (
    absent,
    audio,
    chat,
    completions,
    counts,
    dashboard,
    health,
    messages,
    models,
    responses,
    slots,
    tokens,
)
from coterie.server.routes import (
    profile as profiles,
)
from coterie.server.service import Service
from coterie.server.streams import PING_S

_GROUPS = (
    chat, completions, messages, responses, counts, audio, models, tokens, slots, health, dashboard, profiles, absent,
)  # fmt: skip


def make_app(
    engine: Engine,
    meters: Meters,
    *,
    names: Sequence[str],
    hosts: Hosts | None,
    keys: Keys | None = None,
    origins: Origins | None = None,
    bodies: Bodies | None = None,
    ping_s: float = PING_S,
    shared_prefixes: bool = False,
    profile: str | Path | None = None,
    domain: str | None = None,
) -> ASGIApp:
    """Everything that a server answers.

    Args:
        engine: Runs the model.
        meters: What is counted; the engine's watcher.
        names: What requests may call it.
        hosts: Who requests may be meant for; None behind a front, which has looked at them.
        keys: What opens it; None for anybody.
        origins: Other pages than its own that may ask; None for none.
        bodies: Reads requests.
        ping_s: Seconds of silence in a stream before something is sent.
        shared_prefixes: Whether prompts under several keys share what is computed of how they begin.
        profile: The profile that the dashboard asks about experts; None for none.
        domain: What requests are about that do not say it, for the profile that is recorded; None where none is.
    """
    service = Service(engine, meters, names, bodies or Bodies(), ping_s=ping_s)
    service.explorer = None if profile is None else Explorer(profile, engine.opened.runtime.source.identity)
    service.domains = None if domain is None else Domains(domain)
    operations = _operations(keys=keys is not None)
    router = Router([one.route(service) for one in operations] + pages.routes(), redirect_slashes=False)
    return Gate(
        _Routes(router), hosts=hosts, keys=keys, origins=origins, meters=meters, paths=addresses(),
        shared_prefixes=shared_prefixes,
    )  # fmt: skip


def addresses() -> list[str]:
    """All that a server answers, whoever has the model; what varies in an address is in braces."""
    return [*(one.path for one in _operations(keys=False)), *pages.PAGES]


def _operations(*, keys: bool) -> list[Operation]:
    """All that a model can be asked.

    Args:
        keys: Whether a key is wanted, for the description.
    """
    operations = [one for group in _GROUPS for one in group.operations()]

    async def describe(_service: Service, _request: Request) -> dict[str, Any]:
        return openapi.document([one for one in operations if one.described], version=coterie.__version__, keys=keys)

    operations.append(
        Operation(path="/openapi.json", summary="This document.", method="GET", handler=describe, answered=dict)
    )
    return operations


class _Routes:
    """A router whose refusals are ours."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A router in an application raises what it would else answer itself.
        scope["app"] = self
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            message = {404: "There is nothing at this address.", 405: "This address is not asked by this method."}
            raise Refusal(
                error.status_code, message.get(error.status_code, str(error.detail)), headers=error.headers
            ) from None
