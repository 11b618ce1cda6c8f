"""Serves a model until it is told to end: first no more requests, then those that run are finished or cut."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from uvicorn import Config, Server

from coterie.errors import UsageError
from coterie.profiles.admission import PunctualProtocol
from coterie.server.refusals import Refusal
from coterie.server.tls import Tls

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Served(Protocol):
    """What stands behind a server: one model, or a front before several."""

    draining: bool

    def start(self) -> object:
        """Begins to serve."""

    async def idle(self, seconds: float | None = None) -> bool:
        """Waits until nothing runs and nobody waits."""

    def cut(self) -> None:
        """Ends all requests."""

    def close(self) -> None:
        """Ends."""


_LINGER_S = 5.0
"""For streams that were cut to say so; no longer than it takes, and on a machine that is busy it takes long."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket with an address; nobody is listened to yet.

    Args:
        host: Address to listen at.
        port: Port; 0 for any that is free.

    Raises:
        UsageError: If the address cannot be listened at.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened at: {error.strerror}.", advice="Choose another port: --port.",
            host=host, port=port,
        ) from error  # fmt: skip
    return made


def serve(
    app: ASGIApp,
    engine: Served,
    address: socket.socket,
    *,
    drain_s: float,
    on_ready: Callable[[], None],
    tls: Tls | None = None,
) -> bool:
    """Serves until SIGINT or SIGTERM, and then finishes what runs; another signal cuts it.

    Args:
        app: From :func:`~coterie.server.app.make_app`.
        engine: Runs its model; it is started here, and closed.
        address: Where it listens, from :func:`listening_socket`; it is closed here.
        drain_s: Seconds that requests have to finish.
        on_ready: Called once requests are served.
        tls: What it is encrypted with; None for not at all.

    Returns:
        Whether SIGINT ended it.
    """
    server = _Server(
        Config(
            app, http=_Protocol, ws="none", lifespan="off", log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(_LINGER_S),
            **({} if tls is None else tls.options()),
        )
    )  # fmt: skip
    engine.start()
    try:
        return asyncio.run(_serve(server, engine, address, drain_s, on_ready))
    finally:
        engine.close()


async def _serve(
    server: _Server, engine: Served, address: socket.socket, drain_s: float, on_ready: Callable[[], None]
) -> bool:
    ending, hurry = asyncio.Event(), asyncio.Event()
    interrupted = False

    def end(number: int) -> None:
        nonlocal interrupted
        interrupted |= number == signal.SIGINT
        (hurry if ending.is_set() else ending).set()
        engine.draining = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    serving = asyncio.create_task(server.listen(address, on_ready))
    asked = asyncio.create_task(ending.wait())
    await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        idle, hurried = asyncio.create_task(engine.idle(drain_s)), asyncio.create_task(hurry.wait())
        await asyncio.wait({idle, hurried}, return_when=asyncio.FIRST_COMPLETED)
        engine.cut()
        idle.cancel()
        hurried.cancel()
        server.should_exit = True
    asked.cancel()
    await serving
    return interrupted


class _Server(Server):
    """Uvicorn's, whose signals are handled here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield

    async def listen(self, address: socket.socket, on_ready: Callable[[], None]) -> None:
        """Serves; says so once it does."""
        serving = asyncio.create_task(self.serve(sockets=[address]))
        while not self.started and not serving.done():
            await asyncio.sleep(0.01)
        if self.started:
            on_ready()
        await serving


class _Protocol(PunctualProtocol):
    """As for profiles: who says nothing is not waited for."""

    def error_body(self, text: str) -> bytes:
        """In the shape of other errors."""
        return json.dumps(Refusal(400, "This is not HTTP.").body("openai", "")).encode()
