"""Streams beside each other: what is read off a server's events, and how it becomes tokens per second."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from bench_streams import timed
from fullsize.walk import text_of
from peers.listeners import Listener

SECONDS = 20.0


class Handler(BaseHTTPRequestHandler):
    """Streams the tokens 0, 1, 2 … in pieces that do not end where tokens do, and refuses a prompt of nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if asked["prompt"] else 400)
        self.end_headers()
        if not asked["prompt"]:
            self.wfile.write(b'{"error": {"message": "nothing"}}')
            return
        text = "".join(map(text_of, range(asked["max_tokens"])))
        pieces = ["", text[:4], *(text[at : at + 3] for at in range(4, len(text), 3))]
        for piece in pieces:
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": piece}]}).encode() + b"\n\n")
        self.wfile.write(b": a ping\n\ndata: [DONE]\n\n")

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class TestListener:
    def test_tokens_are_told_apart_however_they_come(self, port: int) -> None:
        listener = Listener(port, "abc", 5)
        listener.wait(SECONDS)
        assert listener.ended == "finished"
        assert listener.tokens == [0, 1, 2, 3, 4]
        assert len(listener.times) == 5
        assert listener.times == sorted(listener.times)
        listener.leave()

    def test_a_refusal_is_told(self, port: int) -> None:
        listener = Listener(port, "", 5)
        listener.wait(SECONDS)
        assert listener.ended is not None
        assert "nothing" in listener.ended
        assert not listener.times
        listener.leave()


class Scripted:
    """Streams whose next tokens come after so many seconds, as soon as somebody looks at the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, had: int, every: list[float], many: int) -> None:
        self.now = 100.0
        self.streams = [SimpleNamespace(times=[self.now - 1] * had, ended=None) for _ in every]
        self._coming = [[self.now + step * (number + 1) for number in range(many)] for step in every]
        clock = SimpleNamespace(perf_counter=lambda: self.now, sleep=self._pass)
        monkeypatch.setattr("bench_streams.time", clock)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for stream, coming in zip(self.streams, self._coming, strict=True):
            while coming and coming[0] <= self.now:
                stream.times.append(coming.pop(0))


class TestTimed:
    def test_the_tokens_of_all_count_after_those_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted = Scripted(monkeypatch, had=3, every=[0.5, 0.5, 0.5], many=100)
        point = timed(scripted.streams, settle=2, tokens=8, seconds=60)
        assert point["whole"]
        assert point["speed"] == pytest.approx(6.0)

    def test_where_time_ends_what_has_come_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted = Scripted(monkeypatch, had=1, every=[10.0, 10.0], many=100)
        point = timed(scripted.streams, settle=4, tokens=8, seconds=55)
        assert not point["whole"]
        assert point["speed"] == pytest.approx(0.2)

    def test_a_single_token_is_timed_from_the_one_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = timed(Scripted(monkeypatch, had=2, every=[39.0], many=9).streams, settle=4, tokens=8, seconds=50)
        assert point["speed"] == pytest.approx(1 / 40, rel=1e-3)

    def test_nothing_may_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = timed(Scripted(monkeypatch, had=1, every=[10.0], many=0).streams, settle=1, tokens=1, seconds=5)
        assert point["speed"] == 0

    def test_a_stream_that_has_ended_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted = Scripted(monkeypatch, had=1, every=[10.0], many=0)
        scripted.streams[0].ended = "500: no"
        with pytest.raises(SystemExit, match="500: no"):
            timed(scripted.streams, settle=1, tokens=1, seconds=5)
