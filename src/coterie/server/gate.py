"""Who is let in: before anything else looks at a request, its host, origin and key are checked, and it gets its id.

What is decided here goes by the path that the request is routed by, never by what a client says of itself.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
import uuid
from collections.abc import Collection
from hashlib import sha256

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coterie.errors import CoterieError
from coterie.profiles.admission import local_names
from coterie.server import identity
from coterie.server.identity import Identity
from coterie.server.keys import Keys
from coterie.server.logs import log_request
from coterie.server.meters import Meters
from coterie.server.origins import Origins, is_preflight
from coterie.server.pages import PAGES
from coterie.server.refusals import Dialect, Refusal, refusal_of

OPEN_PATHS = frozenset({"/health", "/healthz", "/readyz", *PAGES})
"""Asked without a key: whatever watches over servers has none, and a browser that opens a page has none yet. They say a
word about this server, or what is in the package, and nothing else."""

MOST_REQUESTS = 256
"""Requests at once, those that wait for the model included."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """An ASGI application that lets some requests through to another.

    Args:
        app: The other.
        hosts: Who requests may be meant for; None where somebody else has looked at them.
        keys: What opens it; None for anybody.
        meters: What is counted.
        paths: The addresses that there are.
        shared_prefixes: Whether prompts under several keys share what is computed of how they begin.
        origins: Other pages than its own that may ask; None for none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts | None,
        keys: Keys | None,
        meters: Meters,
        paths: Collection[str],
        shared_prefixes: bool = False,
        origins: Origins | None = None,
    ) -> None:
        self._app = app
        self._origins = origins or Origins()
        self._paths = frozenset(paths)
        self._hosts = hosts
        self._keys = keys
        self._meters = meters
        self._shared_prefixes = shared_prefixes
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        identity.begin(state.get("identity") or Identity.new())
        # Under the same salt, prompts that begin alike are computed once.
        state.setdefault("salt", "")
        begun, status = time.monotonic(), 0
        origin = _header(scope, b"origin")
        page = self._origins.headers(origin) if origin is not None and self._origins.name(origin) else []

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._meters.answered(scope["path"] if scope["path"] in self._paths else "other", status)
                name = request_id.encode()
                message["headers"] = [
                    *message.get("headers", ()),
                    *page,
                    (b"x-request-id", name),
                    (b"request-id", name),
                ]
            await send(message)

        self._requests += 1
        try:
            self._check_place(scope)
            if page and is_preflight(scope):
                allowed = self._origins.preflight(_header(scope, b"access-control-request-headers"))
                await answer({"type": "http.response.start", "status": 204, "headers": allowed})
                await answer({"type": "http.response.body", "body": b""})
                return
            self._check_key(scope)
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            pass
        except Exception as error:
            if not isinstance(error, Refusal | CoterieError):
                scope["state"]["error"] = error
            if not status:
                await refused(refusal_of(error), scope)(scope, receive, answer)
        finally:
            self._requests -= 1
            log_request(scope, status=status, seconds=time.monotonic() - begun)

    def _check_place(self, scope: Scope) -> None:
        """Raises :class:`Refusal` for requests that are meant for others, or made by pages of others."""
        if self._hosts is None:
            return
        host = _header(scope, b"host")
        if not self._hosts.allow(host):
            raise Refusal(421, "This server goes by another name. Whoever runs it can allow more: --allow-host.")
        origin = _header(scope, b"origin")
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if _has(scope, b"origin") and (origin is None or origin.lower() not in own) and not self._origins.name(origin):
            raise Refusal(403, "Web pages of other origins may not use this server. Whoever runs it can allow "
                          "more: --allow-origin.")  # fmt: skip

    def _check_key(self, scope: Scope) -> None:
        """Raises :class:`Refusal` for who has no key, or is one too many."""
        if self._keys is not None and scope["path"] not in OPEN_PATHS and not self._has_key(scope, self._keys):
            raise Refusal(
                401, "This server wants an API key, and this is none.", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if self._requests > MOST_REQUESTS:
            raise Refusal(503, "Too many are asking at once.", code="too_many_requests", retry_after=1)

    def _has_key(self, scope: Scope, keys: Keys) -> bool:
        bearer = _header(scope, b"authorization") or ""
        scheme, _, key = bearer.partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else _header(scope, b"x-api-key") or ""
        if not self._shared_prefixes:
            scope["state"]["salt"] = sha256(given.encode("latin-1")).hexdigest()
        return keys.open_with(given)


class Hosts:
    """The names that a server answers to.

    A web page whose name suddenly means this machine's address could else use what is meant for this machine alone.

    Args:
        address: Where the server listens.
        more: Further names, such as that of a proxy before it.
    """

    def __init__(self, address: str, more: Collection[str] = ()) -> None:
        here = local_names("localhost") or frozenset()
        # Where others may ask, they ask by address, too: no name can come to mean another one then.
        self._any_address = not is_local(address)
        own = {address, *here, socket.gethostname()} if self._any_address else {address, *here}
        self._names = {name.lower() for name in (*own, *more)}

    def allow(self, header: str | None) -> bool:
        """Whether a Host header names this server."""
        if header is None or not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", header):
            return False
        name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return local_names(address) is not None


def dialect_of(scope: Scope) -> Dialect:
    """Whose clients an address is for."""
    return "anthropic" if scope["path"].startswith("/v1/messages") else "openai"


def refused(refusal: Refusal, scope: Scope) -> JSONResponse:
    """The answer to a request that gets none."""
    body = refusal.body(dialect_of(scope), scope["state"]["request_id"])
    return JSONResponse(body, status_code=refusal.status, headers=refusal.headers)


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _has(scope: Scope, name: bytes) -> bool:
    return any(key == name for key, _ in scope["headers"])


def _header(scope: Scope, name: bytes) -> str | None:
    """A header that is there once; what is there twice is read by nobody in the same way."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else None
