"""What the server's log says, and what it does not."""

import json
import logging
import re

import pytest

from coterie.server.logs import JsonLines
from docs.pages import ROOT, section
from server.conftest import Served, chat, until


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def about(self, request_id: str) -> list[dict]:
        return [line for line in map(json.loads, self.lines) if line.get("request_id") == request_id]


@pytest.fixture
def lines():
    log, handler = logging.getLogger("coterie.server"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_request_is_a_line_without_what_was_asked(server: Served, lines: Lines) -> None:
    secret = "xyzzysecret"
    answer = server.post("/v1/chat/completions", chat(secret, user=secret), **{"X-Request-Id": "one"})
    assert answer.status == 200
    until(lambda: bool(lines.about("one")))
    (line,) = lines.about("one")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["completion_tokens"], line["finish_reason"]) == (6, "length")
    assert line["queue_s"] >= 0
    server.post("/v1/chat/completions", chat(secret, n=2), **{"X-Request-Id": "two"})
    until(lambda: bool(lines.about("two")))
    assert secret not in "".join(lines.lines)


def test_every_field_stands_in_the_reference(server: Served, lines: Lines, brake) -> None:
    assert server.post("/v1/chat/completions", chat(), **{"X-Request-Id": "five"}).status == 200
    brake.error = RuntimeError("x")
    assert server.post("/v1/chat/completions", chat(), **{"X-Request-Id": "six"}).status == 500
    until(lambda: bool(lines.about("five")) and len(lines.about("six")) >= 2)
    fields = {name for one in (*lines.about("five"), *lines.about("six")) for name in one}
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section(page, "## Log"), re.MULTILINE))))
    assert {"prefill_s", "frames", "request_id"} <= fields <= listed


def test_a_failure_is_told_with_its_place_and_without_its_message(server: Served, lines: Lines, brake) -> None:
    brake.error = RuntimeError("xyzzysecret")
    assert server.post("/v1/chat/completions", chat(), **{"X-Request-Id": "three"}).status == 500
    until(lambda: len(lines.about("three")) >= 2)
    failure = next(line for line in lines.about("three") if line["event"] == "request failed")
    assert failure["error"] == "RuntimeError"
    assert not any("cancelled_in" in line for line in lines.about("three"))
    assert any("on_event" in frame for frame in failure["frames"])
    assert "xyzzysecret" not in "".join(lines.lines)


def test_an_address_cannot_begin_another_line(server: Served, lines: Lines) -> None:
    server.ask("GET", "/%0a%7b%22event%22:%22forged%22%7d%1b[31m" + "a" * 1000, headers={"X-Request-Id": "four"})
    until(lambda: bool(lines.about("four")))
    (line,) = lines.lines[-1:]
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 1000
