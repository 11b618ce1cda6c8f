"""One process with a model: answers what it is sent, and knows nothing of who sent it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import ReplicaError
from coterie.server.replicas.ask import Ask, Head, Part
from coterie.spec import DEFAULT_PARALLEL, PREFIX_DIR_NBYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

    from coterie.spec.opening import Opening

_AHEAD = 16
"""Pieces of an answer that wait to be taken."""
_LINGER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """How each replica serves.

    Attributes:
        model: The model, as it is found on each machine.
        opening: How it is opened.
        names: What requests may call it besides its own name.
        parallel: Requests that run at once at each.
        most_waiting: Requests that may wait at each.
        longest_wait_s: Seconds after which a request that has not begun is given up.
        prefix_memory: Bytes of each one's experts' memory that the beginnings of prompts may take.
        prefix_dir: Where these are copied, on each machine.
        prefix_dir_limit: Bytes that the directory may take on each.
        speech: Whether the whole of an omni model is opened, to answer in speech, too.
    """

    model: str
    opening: Opening
    names: Sequence[str] = ()
    parallel: int = DEFAULT_PARALLEL
    most_waiting: int = 16
    longest_wait_s: float = 300.0
    prefix_memory: int | None = None
    prefix_dir: Path | None = None
    prefix_dir_limit: int = PREFIX_DIR_NBYTES
    speech: bool = False


class Replica:
    """A model and the server's routes over it.

    Args:
        settings: How it serves.

    Raises:
        CoterieError: If the model cannot be opened.
    """

    def __init__(self, settings: ReplicaSettings) -> None:
        from coterie.engine.quiet import quiet_libraries
        from coterie.generation.engine import Engine
        from coterie.generation.opened import OpenModel
        from coterie.generation.speech import Voice, speaker_of
        from coterie.server.app import make_app
        from coterie.server.meters import Meters

        with quiet_libraries(show_downloads=False):
            self._opened = OpenModel.open(settings.model, settings.opening, whole=settings.speech)
        if settings.speech:
            speaker_of(self._opened.model, Voice())
        self._meters = Meters()
        self._engine = Engine(
            self._opened,
            parallel=settings.parallel,
            most_waiting=settings.most_waiting,
            longest_wait_s=settings.longest_wait_s,
            prefix_memory=settings.prefix_memory,
            prefix_dir=settings.prefix_dir,
            prefix_dir_limit=settings.prefix_dir_limit,
            watcher=self._meters,
        )
        names = list(dict.fromkeys([*settings.names, self._opened.runtime.source.name]))
        self._app = make_app(self._engine, self._meters, names=names, hosts=None, profile=settings.opening.profile)
        self._engine.start()

    async def answer(self, ask: Ask) -> AsyncGenerator[Part]:
        """The answer to a request, as it comes. Whoever closes the generator has left."""
        async with aclosing(answered(self._app, ask)) as parts:
            async for part in parts:
                yield part

    def figures(self) -> bytes:
        """What it counts, for Prometheus."""
        return self._meters.text()

    def check_health(self) -> None:
        """Raises where nothing can be served any more, so that it is started anew."""
        trouble = self._engine.trouble
        if trouble is not None:
            raise ReplicaError(f"Not ready: {trouble}.")

    def close(self) -> None:
        """Ends all requests and frees the model."""
        self._engine.close()
        self._opened.model.coterie.close()


async def answered(app: ASGIApp, ask: Ask) -> AsyncGenerator[Part]:
    """What an application answers, as it comes. Whoever closes the generator has left.

    Args:
        app: From :func:`~coterie.server.app.make_app`, without anything before it.
        ask: The request.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
    left = asyncio.Event()
    body: list[Message] = [{"type": "http.request", "body": ask.body, "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await app(_scope(ask), receive, sent.put)
        finally:
            await sent.put(None)

    working = asyncio.create_task(work())
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], tuple((bytes(k), bytes(v)) for k, v in message["headers"]))
            elif message["type"] == "http.response.body" and message.get("body"):
                yield bytes(message["body"])
        await working
    finally:
        left.set()
        await _ended(working, sent)


async def _ended(working: asyncio.Task[None], sent: asyncio.Queue[Message | None]) -> None:
    """Waits for a request that nobody waits for: it sees so by itself, and what it still sends is thrown away."""

    async def drain() -> None:
        while True:
            await sent.get()

    draining = asyncio.create_task(drain())
    try:
        await asyncio.wait({working}, timeout=_LINGER_S)
    finally:
        for task in (working, draining):
            task.cancel()
        with suppress(BaseException):
            await asyncio.gather(working, draining, return_exceptions=True)


def _scope(ask: Ask) -> Scope:
    state: dict[str, Any] = {"request_id": ask.request_id, "identity": ask.identity, "salt": ask.salt}
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": ask.method, "scheme": "http",
        "path": ask.path, "raw_path": ask.path.encode(), "query_string": ask.query, "root_path": "",
        "headers": list(ask.headers), "client": None, "server": None, "state": state,
    }  # fmt: skip
