"""Answers that arrive piece by piece, as server-sent events that never fall silent, or as the bytes of a sound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Scope, Send

PING_S = 4.0
"""Seconds of silence after which something is sent: on a busy machine it is not sent at once."""
SEND_S = 60.0
"""Seconds that a client may take to take something."""

COMMENT_PING = b": ping\n\n"
"""A line that clients skip."""
NAMED_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
"""As Anthropic's clients know it: comments do not tell them that the server is alive."""


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n\n"


DONE = b"data: [DONE]\n\n"
EVENTS = "text/event-stream; charset=utf-8"


class EventStream:
    """An ASGI answer: headers at once, then events as they come, and a ping wherever none came for a while.

    Args:
        events: The events. When the client leaves, it is closed.
        ping: What is sent so that there is something; nothing if it is empty.
        kind: What the answer is. Of other kinds than events, each is some bytes.
        ping_s: Seconds of silence before that.
        send_s: Seconds that a client may take to take something.
        close: Called at the end, whoever ended it.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        ping: bytes,
        kind: str = EVENTS,
        ping_s: float = PING_S,
        send_s: float = SEND_S,
        close: Callable[[], None],
    ) -> None:
        self._events = events
        self._kind = kind
        self._ping = ping
        self._ping_s = ping_s
        self._send_s = send_s
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        try:
            await self._send(receive, send)
        finally:
            self._close()

    async def _send(self, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self._kind.encode("ascii")),
            (b"cache-control", b"no-cache, no-transform"),
            # Proxies would hold it back.
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(data: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(self._send_s):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        async def speak() -> None:
            await self._speak(say)
            await say(b"", more=False)

        with suppress(TimeoutError):
            await unless_gone(receive, speak())

    async def _speak(self, say: Callable[[bytes], Awaitable[None]]) -> None:
        coming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=self._ping_s)
                if not done:
                    if self._ping:
                        await say(self._ping)
                    continue
                data = coming.result()
                if data is None:
                    return
                await say(data)
                coming = asyncio.ensure_future(anext(self._events, None))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await coming
            await self._events.aclose()


async def unless_gone(receive: Receive, work: Awaitable[None]) -> bool:
    """Does something, unless the client leaves; returns whether it was done."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
