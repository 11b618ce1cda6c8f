"""What can be asked of a server: an address each, with what it takes and gives, for routing and for documentation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from coterie.server.refusals import Dialect
from coterie.server.schemas.fields import Fields

if TYPE_CHECKING:
    from coterie.server.service import Service

Handler = Callable[["Service", Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One address.

    Attributes:
        path: The address, with what varies in braces.
        summary: What it is for, in a line.
        handler: Answers for a model: with an ASGI application, or with what becomes JSON.
        method: How it is asked.
        asked: What a request says; None where it says nothing.
        answered: What an answer says; None where that is no JSON.
        streams: Whether it can answer in server-sent events.
        dialect: Whose errors it has.
        keyless: Whether no key is needed.
        form: Whether a request is a form, as files are sent with.
        kinds: What an answer may be that is bytes, such as ``audio/wav``.
        described: Whether the OpenAPI document has it.
    """

    path: str
    summary: str
    handler: Handler
    method: Literal["GET", "POST"] = "POST"
    asked: type[Fields] | None = None
    answered: Any = None
    streams: bool = False
    dialect: Dialect = "openai"
    keyless: bool = False
    form: bool = False
    kinds: tuple[str, ...] = ()
    described: bool = True

    def route(self, service: Service) -> Route:
        """For starlette.

        Args:
            service: The model that is asked.
        """

        async def endpoint(request: Request) -> ASGIApp:
            answer = await self.handler(service, request)
            return JSONResponse(answer) if isinstance(answer, dict | list) else answer

        return Route(self.path, endpoint, methods=[self.method])
