"""Web pages: those of other origins stay outside, but for origins that were named."""

import http.client

import pytest

from coterie.errors import UsageError
from coterie.server.keys import Keys
from coterie.server.origins import Origins
from server.conftest import Served, chat

PATH = "/v1/chat/completions"
PAGE = "https://chat.example.org"
KEY = "a-key-of-some-length"
OTHERS = [
    "https://evil.example", "null", "https://chat.example.org.evil.example", "http://chat.example.org",
    "https://chat.example.org:444", "https://CHAT.example.org", "https://chat.example.org/", "*", "",
    "https://chat.example.org https://evil.example",
]  # fmt: skip


@pytest.fixture
def allowing(serve) -> Served:
    return serve(origins=Origins([PAGE]), keys=Keys([KEY]))


def test_a_page_that_was_named_may_ask_and_read(allowing: Served) -> None:
    answer = allowing.post(PATH, chat(max_tokens=1), Origin=PAGE, Authorization=f"Bearer {KEY}")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_it_reads_errors_and_streams_too(allowing: Served) -> None:
    unknown = allowing.post(PATH, chat(), Origin=PAGE)
    assert (unknown.status, unknown.headers["access-control-allow-origin"]) == (401, PAGE)
    stream = allowing.post(PATH, chat(max_tokens=1, stream=True), Origin=PAGE, Authorization=f"Bearer {KEY}")
    assert stream.headers["access-control-allow-origin"] == PAGE


def test_its_browser_asks_before_without_a_key(allowing: Served) -> None:
    asked = {
        "Origin": PAGE, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }  # fmt: skip
    answer = allowing.ask("OPTIONS", PATH, headers=asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    hostile = asked | {"Access-Control-Request-Headers": "x\t: y"}
    assert "access-control-allow-headers" not in allowing.ask("OPTIONS", PATH, headers=hostile).headers


def test_what_is_no_such_question_wants_the_key(allowing: Served) -> None:
    assert allowing.ask("OPTIONS", PATH, headers={"Origin": PAGE}).status == 401
    assert allowing.get("/v1/models", Origin=PAGE).status == 401


@pytest.mark.parametrize("origin", OTHERS)
def test_all_others_stay_outside(allowing: Served, origin: str) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        allowing.post(PATH, chat(), Origin=origin, **key),
        allowing.get("/v1/models", Origin=origin, **key),
        allowing.ask("OPTIONS", PATH, headers=asked),
    ):
        assert answer.status == 403
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_who_says_two_origins_says_none_that_is_known(allowing: Served, server: Served) -> None:
    for served, first in ((allowing, PAGE), (server, server.url), (server, "https://evil.example")):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.putrequest("GET", "/healthz")
        connection.putheader("Origin", first)
        connection.putheader("Origin", "https://evil.example")
        connection.endheaders()
        assert connection.getresponse().status == 403
        connection.close()


@pytest.mark.parametrize(
    "origin", ["*", "null", "chat.example.org", "https://chat.example.org/", "https://*.example.org", "", "file://x",
               "https://chat.example.org/path", "https://user@chat.example.org", "HTTPS://chat.example.org"],
)  # fmt: skip
def test_only_exact_origins_can_be_named(origin: str) -> None:
    with pytest.raises(UsageError, match="no origin"):
        Origins([origin])


def test_addresses_and_ports_can_be_named() -> None:
    for origin in ("http://localhost:3000", "http://[::1]:3000", "http://192.168.1.5"):
        assert Origins([origin]).name(origin)
