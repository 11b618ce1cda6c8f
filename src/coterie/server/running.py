"""Serves a model until it is told to end: first no more requests, then those that run are finished or cut."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h11
from uvicorn import Config, Server

from coterie.errors import UsageError
from coterie.profiles.admission import PunctualProtocol
from coterie.server.engine import Engine

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_LINGER_S = 2.0
"""For streams that were cut to say so."""


def serve(
    app: ASGIApp,
    engine: Engine,
    *,
    host: str,
    port: int,
    drain_s: float,
    on_ready: Callable[[str], None],
) -> bool:
    """Serves until SIGINT or SIGTERM, and then finishes what runs; another signal cuts it.

    Args:
        app: From :func:`~coterie.server.app.make_app`.
        engine: Runs its model; it is started here, and closed.
        host: Address to listen at.
        port: Port; 0 for any that is free.
        drain_s: Seconds that requests have to finish.
        on_ready: Told the server's URL.

    Returns:
        Whether SIGINT ended it.

    Raises:
        UsageError: If the address cannot be listened at.
    """
    server = _Server(
        Config(
            app, host=host, port=port, http=_Protocol, ws="none", lifespan="off", log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(_LINGER_S),
        )
    )  # fmt: skip
    engine.start()
    try:
        return asyncio.run(_serve(server, engine, drain_s, on_ready))
    finally:
        engine.close()


async def _serve(server: _Server, engine: Engine, drain_s: float, on_ready: Callable[[str], None]) -> bool:
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
    serving = asyncio.create_task(server.listen(on_ready))
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

    async def listen(self, on_ready: Callable[[str], None]) -> None:
        """Serves; says so once it does.

        Raises:
            UsageError: If the address cannot be listened at.
        """
        config = self.config
        serving = asyncio.create_task(self.serve())
        while not self.started and not serving.done():
            await asyncio.sleep(0.01)
        if self.started:
            host = f"[{config.host}]" if ":" in config.host else config.host
            on_ready(f"http://{host}:{self.servers[0].sockets[0].getsockname()[1]}")
        try:
            await serving
        except SystemExit:
            raise _cannot_listen(config) from None
        if not self.started:
            raise _cannot_listen(config)


def _cannot_listen(config: Config) -> UsageError:
    return UsageError(
        f"{config.host}:{config.port} cannot be listened at.", advice="Choose another port: --port.",
        host=config.host, port=config.port,
    )  # fmt: skip


class _Protocol(PunctualProtocol):
    """As for profiles: who says nothing is not waited for."""

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the shape of other errors."""
        error = {"message": "This is not HTTP.", "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for one in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(one) or b"")
        self.transport.close()
