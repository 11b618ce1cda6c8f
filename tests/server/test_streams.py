"""Streams that never fall silent, and clients that stop listening."""

import asyncio
import socket
import time

import pytest

from coterie.profiles import admission
from coterie.server import service as service_module
from coterie.server.streams import COMMENT_PING, DONE, EventStream
from server.conftest import PROMPT, Served, chat, drop, until


@pytest.mark.parametrize(
    ("path", "more", "ping"),
    [("/v1/chat/completions", {}, b": ping\n"), ("/v1/messages", {"model": "bundled"}, b"event: ping\n")],
)
def test_headers_come_at_once_and_pings_while_nothing_else_does(serve, brake, path: str, more, ping: bytes) -> None:
    server = serve(ping_s=0.05)
    brake.hold()
    connection, response = server.begin(path, chat(stream=True) | more)
    assert response.status == 200
    assert brake.reached.wait(30)
    lines = [response.readline() for _ in range(24)]
    assert lines.count(ping) >= 3
    brake.release()
    assert response.read().count(b"data: ") >= 3
    connection.close()


def test_headers_come_while_a_request_waits_for_its_turn(serve, brake) -> None:
    server = serve(ping_s=0.05)
    brake.hold()
    first = server.begin("/v1/chat/completions", chat(stream=True))
    assert brake.reached.wait(30)
    connection, response = server.begin("/v1/chat/completions", chat(stream=True))
    assert response.status == 200
    assert b'"role": "assistant"' in response.readline()
    brake.release()
    assert response.read().endswith(DONE)
    drop(*first)
    connection.close()


def test_headers_come_before_a_slow_prompt_is_ready(serve, monkeypatch) -> None:
    server = serve()
    made, slept = service_module.Prompts.of_messages, []

    def slow(*arguments: object, **options: object) -> object:
        slept.append(time.sleep(0.5))
        return made(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(service_module.Prompts, "of_messages", slow)
    connection, response = server.begin("/v1/chat/completions", chat("<|image_pad|>", stream=True))
    assert response.status == 200
    assert not slept
    text = response.read()
    connection.close()
    assert b'"error"' in text
    assert text.endswith(DONE)


def test_a_client_that_takes_nothing_is_given_up() -> None:
    """Its events end, and whoever made them is told."""
    ended: list[str] = []

    async def events():
        try:
            while True:
                yield COMMENT_PING
        finally:
            ended.append("events")

    async def send(message) -> None:
        if message.get("body"):
            await asyncio.sleep(60)

    async def receive():
        await asyncio.sleep(60)

    async def run() -> None:
        stream = EventStream(events(), ping=COMMENT_PING, send_s=0.05, close=lambda: ended.append("close"))
        await asyncio.wait_for(stream({}, receive, send), 20)

    asyncio.run(run())
    assert ended == ["events", "close"]


def test_who_asks_on_and_on_and_takes_nothing_is_given_up(server: Served, monkeypatch) -> None:
    """Whoever answers waits for what was said before to be taken, and that is a request going on."""
    monkeypatch.setattr(admission, "TAKE_TIMEOUT_S", 0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 150)

        def is_closed() -> bool:
            try:
                connection.send(b"G")
            except ConnectionError:
                return True
            return False

        until(is_closed)
    assert server.get("/readyz").status == 200


def test_who_takes_it_in_the_end_is_not_given_up(server: Served, monkeypatch) -> None:
    monkeypatch.setattr(admission, "TAKE_TIMEOUT_S", 1.5)
    ask, times = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n", 60
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(ask * times)
        time.sleep(0.2)
        for more in (times, 1):
            taken = b""
            while taken.count(b'{"openapi"') < more or not taken.endswith(b"}"):
                part = connection.recv(1 << 20)
                assert part
                taken += part
            if more > 1:
                # It was waited for, and is so no longer.
                time.sleep(1.6)
                connection.sendall(ask)


def test_leaving_before_the_first_event_gives_the_request_up() -> None:
    closed: list[bool] = []

    async def events():
        await asyncio.sleep(60)
        yield b""

    async def send(_) -> None:
        pass

    async def receive():
        return {"type": "http.disconnect"}

    stream = EventStream(events(), ping=COMMENT_PING, close=lambda: closed.append(True))
    asyncio.run(asyncio.wait_for(stream({}, receive, send), 20))
    assert closed == [True]


def test_a_stream_does_not_hold_pieces_back(server: Served) -> None:
    """Each piece is sent when it is there, not at the end."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        body = b'{"prompt": "%s", "max_tokens": 3000, "stream": true, "temperature": 0}' % PROMPT.encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        until(lambda: b"data: " in connection.recv(4096))
    until(lambda: server.engine.running == 0)
