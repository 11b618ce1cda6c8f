"""One of many clients: asks, compares what comes with what is known to be right, or leaves before it has come."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.conftest import read_events

DEADLINE_S = 120.0
"""Seconds after which an answer counts as hanging."""
LONG_S = 5.0
"""Seconds without a request after which the server may have closed a connection."""
_OWN = frozenset(("time_ms", "id", "item_id", "call_id", "request_id", "created", "created_at", "completed_at"))
"""What no two answers have in common."""
_OF_BEFORE = frozenset(("prompt_tokens_details", "input_tokens_details"))
"""What depends on who asked before."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        name: What it is called in messages of tests.
        path: Where it goes.
        body: What it says; None where it says nothing.
        method: How.
        headers: Beside length and id.
    """

    name: str
    path: str
    body: bytes | None = None
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)

    @classmethod
    def of(cls, name: str, path: str, value: Any) -> Asked:
        """One in JSON."""
        return cls(name, path, json.dumps(value).encode())

    def head(self, request_id: str) -> dict[str, str]:
        """Its headers."""
        length = {} if self.body is None else {"Content-Length": str(len(self.body))}
        return dict(self.headers) | length | {"X-Request-Id": request_id}

    def raw(self, port: int, request_id: str) -> bytes:
        """All that is sent."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in self.head(request_id).items()]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body or b"")


Answer = tuple[int, Any]
"""Status, and what is the same whenever the same is asked."""


class Client:
    """Asks one request after another.

    Args:
        port: Of the server.
        known: What is right, by request.
        seed: Of what it draws.

    Attributes:
        ends: How many of its requests ended how.
        seconds: How long answers took.
        wrong: What should not have been.
    """

    def __init__(self, port: int, known: dict[Asked, Answer], seed: int) -> None:
        self._port = port
        self._known = known
        self._seed = seed
        self._draw = random.Random(seed)
        self._number = 0
        self._kept: http.client.HTTPConnection | None = None
        self._last = 0.0
        self.ends: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def one(self) -> None:
        """One request."""
        draw = self._draw
        asked = draw.choice(list(self._known))
        self._number += 1
        request_id = f"client-{self._seed}-{self._number}"
        began = time.monotonic()
        try:
            if draw.random() < 0.3:
                self.ends[self._leave(asked, request_id)] += 1
                return
            found = self.ask(asked, request_id, keep=draw.random() < 0.7)
        except Exception as error:
            self.wrong.append(f"{request_id} {asked.name}: {type(error).__name__}: {error}")
            return
        self.seconds.append(time.monotonic() - began)
        if found == self._known[asked]:
            self.ends["answered"] += 1
        else:
            self.wrong.append(f"{request_id} {asked.name}: {found}, and not {self._known[asked]}")

    def ask(self, asked: Asked, request_id: str, *, keep: bool = False) -> Answer:
        """A whole answer.

        Args:
            asked: The request.
            request_id: Its name.
            keep: Whether to do so over the connection of the request before, and to keep that.
        """
        connection = self._connection() if keep else self._new()
        used = keep and self._last > 0
        try:
            response = self._response(connection, asked, request_id)
        except (http.client.RemoteDisconnected, ConnectionError):
            # As all clients do: where the server has closed what nobody used for long, it is asked once more.
            if not used or time.monotonic() - self._last < LONG_S:
                raise
            self.close()
            connection = self._connection()
            response = self._response(connection, asked, request_id)
        data = _all(response)
        names = {response.headers["x-request-id"], response.headers["request-id"]}
        assert names == {request_id}, f"this is the answer to {names}"
        if not keep:
            connection.close()
        elif response.will_close:
            self.close()
        else:
            self._last = time.monotonic()
        return response.status, _common(response, data)

    def close(self) -> None:
        """Closes the connection that it keeps."""
        if self._kept is not None:
            self._kept.close()
        self._kept, self._last = None, 0.0

    def _new(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)

    def _connection(self) -> http.client.HTTPConnection:
        if self._kept is None:
            self._kept, self._last = self._new(), 0.0
        return self._kept

    @staticmethod
    def _response(connection: http.client.HTTPConnection, asked: Asked, request_id: str) -> http.client.HTTPResponse:
        connection.request(asked.method, asked.path, asked.body, asked.head(request_id))
        return connection.getresponse()

    def _leave(self, asked: Asked, request_id: str) -> str:
        """Goes at some point before the end, in one of the ways in which clients go; says how."""
        draw, data = self._draw, asked.raw(self._port, request_id)
        with socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE_S) as connection:
            if draw.random() < 0.5:
                # Without a goodbye, as a process goes that is killed with something unread.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            how = draw.choice(("while it asks", "at once", "before the first byte", "after it", "in the middle"))
            if how == "while it asks":
                connection.sendall(data[: draw.randrange(1, len(data))])
                return f"left {how}"
            connection.sendall(data)
            if how == "before the first byte":
                time.sleep(draw.random() * 0.1)
            elif how == "after it":
                connection.recv(1)
            elif how == "in the middle":
                taken, some = 0, draw.randrange(100, 3000)
                # The end of what is kept open does not come by itself.
                connection.settimeout(0.5)
                with suppress(TimeoutError, ConnectionError):
                    while taken < some and (more := connection.recv(some - taken)):
                        taken += len(more)
            return f"left {how}"


def _all(response: http.client.HTTPResponse) -> bytes:
    """The body; one that pings for ever is none."""
    end, data = time.monotonic() + DEADLINE_S, b""
    while part := response.read1():
        data += part
        if time.monotonic() > end:
            raise TimeoutError(f"no end after {DEADLINE_S:g} s: {data[-200:]!r}")
    return data + response.read()


def _common(response: http.client.HTTPResponse, data: bytes) -> Any:
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        return _without(json.loads(data))
    if kind == "text/event-stream":
        return _in_order([(name, _without(event)) for name, event in read_events(data.decode())])
    return data


def _without(value: Any) -> Any:
    """Without what only this answer has."""
    if isinstance(value, dict):
        # A stream of Anthropic's shape begins at once, whether it is known or not how long the prompt is.
        dropped = _OWN | _OF_BEFORE | ({"message"} if value.get("type") == "message_start" else set())
        return {key: _without(one) for key, one in value.items() if key not in dropped}
    return [_without(one) for one in value] if isinstance(value, list) else value


def _in_order(events: list[tuple[str | None, Any]]) -> list[tuple[str | None, Any]]:
    """The events of one choice after those of another: who comes first among several depends on who else is served.

    Pings are no part of it.
    """

    def choice(event: tuple[str | None, Any]) -> int:
        choices = event[1].get("choices") if isinstance(event[1], dict) else None
        return choices[0]["index"] if choices else -1

    told = [event for event in events if event[0] != "ping"]
    *said, last = told
    numbers = {choice(event) for event in said} - {-1}
    if len(numbers) > 1:
        end = [event for event in said if choice(event) == -1]
        said = [event for number in sorted(numbers) for event in said if choice(event) == number] + end
    return [*said, last]
