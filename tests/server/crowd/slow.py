"""Connections that mean no good: they say what they want byte by byte, say nothing, or do not take what they get."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import Self

LONGEST_S = 150.0
"""Seconds after which a connection should have been closed: 60 for who takes nothing, and what a busy machine adds."""
_PACE_S = 1.0
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_KINDS = ("head", "body", "nothing", "unread")


class SlowOnes:
    """So many connections, each of which is made anew when the server has closed it.

    Args:
        port: Of the server.
        count: How many.

    Attributes:
        open: How many there are now.
        closed: How many were closed, by kind.
        longest: Seconds that the longest one was open.
    """

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self._draw = random.Random(count)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="slow ones")
        self._tasks: list[asyncio.Task[None]] = []
        self.open = 0
        self.closed: Counter[str] = Counter()
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])
        self._thread.join()

    def _run(self) -> None:
        async def all_of_them() -> None:
            self._tasks = [asyncio.create_task(self._again(_KINDS[n % len(_KINDS)])) for n in range(self._count)]
            await asyncio.gather(*self._tasks, return_exceptions=True)

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(all_of_them())

    async def _again(self, kind: str) -> None:
        await asyncio.sleep(self._draw.random() * 2)
        while True:
            began = time.monotonic()
            with suppress(OSError):
                await self._one(kind)
            self.closed[kind] += 1
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(self._draw.random())

    async def _one(self, kind: str) -> None:
        connection = socket.socket()
        # What is not taken fills little, and the server is left with the rest.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        await self._loop.sock_connect(connection, ("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1)
        self.open += 1
        try:
            await self._dawdle(kind, reader, writer)
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _dawdle(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Returns when the server has had enough."""
        if kind == "unread":
            # More than the kernel takes in between.
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        elif kind == "body":
            writer.write(_HEAD + b"Content-Length: 100000\r\n\r\n")
        rest = b"" if kind == "nothing" else _HEAD + b"X-Long: " + b"x" * 4000
        for place in range(10**6):
            writer.write(rest[place % len(rest) :][:1] if rest else b"")
            if kind == "unread":
                # Its end is seen by writing.
                await asyncio.sleep(_PACE_S)
                if writer.transport.is_closing():
                    return
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PACE_S):
                        if not await reader.read(1 << 16):
                            return
