"""The server before replicas: passes each request on to one, and has another one go on where one is lost.

An answer is the same, byte for byte, whichever replica makes it: greedy, seeded, or with the seed that its request gets
here. So what a lost replica has sent already is made again by another one, compared, and not sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coterie.server.app import addresses
from coterie.server.bodies import Bodies
from coterie.server.gate import dialect_of
from coterie.server.identity import current
from coterie.server.meters import Meters
from coterie.server.refusals import Refusal
from coterie.server.replicas.answer import Answer
from coterie.server.replicas.ask import Ask, Part, prompt_of
from coterie.server.replicas.figures import joined
from coterie.server.streams import COMMENT_PING, NAMED_PING, PING_S, EventStream

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_PASSED_ON = frozenset({b"content-type", b"content-encoding", b"accept"})
_POLL_S = 0.05
_OWN = {"/healthz": "_alive", "/readyz": "_ready", "/health": "_ready", "/metrics": "_metrics"}


class Cluster(Protocol):
    """Whoever has the replicas."""

    def ask(self, ask: Ask) -> AsyncGenerator[Part]:
        """Has one of them answer. Raises :class:`~coterie.server.replicas.answer.LostReplica` where it ends first."""

    async def figures(self) -> list[bytes]:
        """What each counts, for Prometheus."""

    async def trouble(self) -> str | None:
        """Why none answers; None if one does."""


class Front:
    """An ASGI application that has replicas answer. :func:`~coterie.server.running.serve` runs it like an engine.

    Args:
        cluster: The replicas.
        bodies: Reads requests.
        ping_s: Seconds of silence in a stream before something is sent.

    Attributes:
        meters: What is counted here.
        draining: Whether nothing new is taken on.
    """

    def __init__(self, cluster: Cluster, *, bodies: Bodies | None = None, ping_s: float = PING_S) -> None:
        self.meters = Meters()
        self.draining = False
        self._cluster = cluster
        self._bodies = bodies or Bodies()
        self._ping_s = ping_s
        self._running = 0
        self._cut = asyncio.Event()

    @property
    def paths(self) -> list[str]:
        """Addresses that are counted each for itself: those of the replicas, which this answers for."""
        return addresses()

    def start(self) -> None:
        """Nothing: the replicas serve already."""

    async def idle(self, seconds: float | None = None) -> bool:
        """Waits until nothing runs; returns whether that came to be within the time."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while self._running:
            if end is not None and loop.time() >= end:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def cut(self) -> None:
        """Ends all requests, as a server does that has to go. Call it in the event loop."""
        self.draining = True
        self._cut.set()

    def close(self) -> None:
        """Nothing: the replicas belong to somebody else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["path"] in _OWN:
            own: Callable[[], Awaitable[Response]] = getattr(self, _OWN[scope["path"]])
            await (await own())(scope, receive, send)
            return
        if self.draining:
            raise Refusal(503, "The server is shutting down.", code="shutting_down", retry_after=5)
        self._running += 1
        try:
            await (await self._passed_on(scope, receive))(scope, receive, send)
        finally:
            self._running -= 1

    async def _passed_on(self, scope: Scope, receive: Receive) -> ASGIApp:
        """The answer of a replica, as an application that sends it."""
        identity, dialect = current(), dialect_of(scope)
        request = Request(scope, receive)
        async with self._bodies.raw(request) as body:
            ask = Ask(
                method=scope["method"],
                path=scope["path"],
                query=scope["query_string"],
                headers=tuple((key, value) for key, value in scope["headers"] if key in _PASSED_ON),
                body=body,
                request_id=scope["state"]["request_id"],
                word=identity.word,
                created=identity.created,
                salt=scope["state"]["salt"],
                prompt=prompt_of(body) or scope["path"],
            )
        answer = Answer(self._cluster.ask, ask, dialect, cut=self._cut)
        if not await answer.begin(receive):
            return _nobody
        if answer.head.is_stream:
            ping = NAMED_PING if dialect == "anthropic" else COMMENT_PING
            return EventStream(answer.events(), ping=ping, ping_s=self._ping_s, close=_nothing)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in answer.head.shown}
        return Response(answer.whole, answer.head.status, headers)

    async def _alive(self) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self) -> Response:
        trouble = "shutting down" if self.draining else await self._cluster.trouble()
        if trouble is not None:
            raise Refusal(503, f"Not ready: {trouble}.", code="not_ready", retry_after=5)
        return JSONResponse({"status": "ready"})

    async def _metrics(self) -> Response:
        replicas = {str(number): text for number, text in enumerate(await self._cluster.figures())}
        text = joined({"front": self.meters.text(), **replicas})
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to a client that has left."""


def _nothing() -> None:
    pass
