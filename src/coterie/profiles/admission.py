"""Who is let in by a server of profiles, how many at once, and how long they may take to say what they want."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from coterie.profiles.exchange import EXCHANGE_SCHEMA_VERSION

MOST_REQUESTS = 64
"""Requests that are answered at once."""
MOST_CONNECTIONS = 512
"""Open connections; where there are more, the one that has been waited for the longest is closed."""
HEAD_TIMEOUT_S = 10.0
"""In which a request has to be said, and within which something of an answer has to be taken."""
TAKE_TIMEOUT_S = 60.0
"""Within which something has to be taken while the rest of an answer, or the next one, waits for that."""
RETRY_AFTER_S = 5

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


def error_json(text: str) -> bytes:
    """The body of an answer that is an error."""
    return json.dumps({"schema_version": EXCHANGE_SCHEMA_VERSION, "error": text}, ensure_ascii=False).encode()


def local_names(host: str) -> frozenset[str] | None:
    """What requests may call a server that listens at an address: names of this machine; None, anything, elsewhere.

    A web page whose name suddenly means 127.0.0.1 could else read what is meant for this machine alone.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host.lower() == "localhost"
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if is_local else None


class Admission:
    """An ASGI application that hands on to another no more requests than can be answered at once, all for this server.

    Args:
        app: The other.
        hosts: Names that requests may call the server by; None for any.
    """

    def __init__(self, app: _App, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._requests = 0

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._hosts is not None and _host(scope) not in self._hosts:
            await _refuse(send, 421, "This server goes by another name. Whoever runs it can allow more: --allow-host.")
        elif self._requests >= MOST_REQUESTS:
            await _refuse(send, 503, "Too many are asking at once. Try again.", retry=True)
        else:
            self._requests += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._requests -= 1


def _host(scope: _Message) -> str:
    """The name of the Host header, without a port."""
    names = [value for name, value in scope["headers"] if name == b"host"]
    text = names[0].decode("latin-1").lower() if len(names) == 1 else ""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


async def _refuse(send: _Send, status: int, text: str, *, retry: bool = False) -> None:
    body = error_json(text)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class PunctualProtocol(H11Protocol):
    """Uvicorn's protocol, for clients that mean no good: who says nothing, or takes nothing, is not waited for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._waiting_since: float | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._wait()
        waiting: list[Any] = [one for one in self.connections if getattr(one, "_waiting_since", None) is not None]
        if len(self.connections) > MOST_CONNECTIONS and waiting:
            min(waiting, key=lambda one: one._waiting_since).transport.abort()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        finished = self.cycle
        super().on_response_complete()
        if self.cycle is finished:
            self._wait()

    def pause_writing(self) -> None:
        """More was said than is taken: whoever answers waits from now on, and not for ever."""
        super().pause_writing()
        self._wait_for_taking()

    def resume_writing(self) -> None:
        """Enough was taken."""
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def error_body(self, text: str) -> bytes:
        """The body of the answer to what is no HTTP."""
        return error_json(text)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, with JSON like all else."""
        body = self.error_body(msg)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        self._waiting_since = time.monotonic()
        self._watch(self.cycle, self.transport.get_write_buffer_size())

    def _watch(self, cycle: Any, unsent: int) -> None:
        self.loop.call_later(HEAD_TIMEOUT_S, self._look, cycle, unsent)

    def _look(self, cycle: Any, unsent: int) -> None:
        """Closes the connection if since some time neither a request has come nor anything of the answer has gone."""
        if self.cycle is not cycle:
            self._waiting_since = None
        elif not self.transport.is_closing() or unsent:
            left = self.transport.get_write_buffer_size()
            if left < unsent:
                self._watch(cycle, left)
            else:
                self.transport.abort()

    def _wait_for_taking(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._taking = self.loop.call_later(TAKE_TIMEOUT_S, self._see_what_was_taken, unsent)

    def _see_what_was_taken(self, unsent: int) -> None:
        """Closes the connection if nothing was, of so many bytes."""
        if self.transport.get_write_buffer_size() < unsent:
            self._wait_for_taking()
        else:
            self.transport.abort()
