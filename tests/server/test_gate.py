"""Who is let in."""

import http.client
import json
import socket
from contextlib import ExitStack

import pytest

from coterie.errors import InputError
from coterie.server.gate import OPEN_PATHS, Hosts
from coterie.server.keys import Keys
from server.conftest import PROMPT, Served, chat

PATH = "/v1/chat/completions"
KEY = "a-key-of-some-length"


@pytest.mark.parametrize(
    ("address", "header", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST:1", True),
        ("127.0.0.1", "[::1]:8000", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "192.168.1.5", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "localhost/evil", False),
        ("127.0.0.1", "localhost?", False),
        ("127.0.0.1", "localhost#", False),
        ("127.0.0.1", "a@localhost", False),
        ("127.0.0.1", "localhost:8000:1", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("127.0.0.1", "proxy.example", True),
        ("0.0.0.0", "192.168.1.5:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "localhost", True),
        ("192.168.1.5", "192.168.1.5:8000", True),
    ],
)
def test_a_server_answers_to_its_own_names(address: str, header: str | None, allowed: bool) -> None:
    assert Hosts(address, ["proxy.example"]).allow(header) is allowed


def test_requests_for_another_host_are_refused(server: Served) -> None:
    for host in ("evil.example", "localhost/x", "127.0.0.1@evil.example", "localhost:80:80"):
        refused = server.post(PATH, chat(), Host=host)
        assert refused.status == 421, host
        assert server.get("/healthz", Host=host).status == 421


def test_two_hosts_are_none(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("GET", "/healthz", skip_host=True)
    connection.putheader("Host", "localhost")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 421)
    connection.close()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_pages_of_other_origins_are_refused(server: Served, origin: str) -> None:
    for answer in (server.post(PATH, chat(), Origin=origin), server.get("/v1/models", Origin=origin)):
        assert (answer.status, answer.error["type"]) == (403, "permission_error")
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_page_of_this_server_may_ask(server: Served) -> None:
    assert server.post(PATH, chat(max_tokens=1), Origin=server.url).status == 200


def test_a_browser_s_question_whether_it_may_is_refused(server: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert server.ask("OPTIONS", PATH, headers=headers).status == 403


def test_a_form_of_another_page_is_no_request(server: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert server.post(PATH, chat(), **{"Content-Type": kind}).status == 415


def test_every_address_but_those_of_health_wants_the_key(serve, opened) -> None:
    server = serve(keys=Keys([KEY, "another-key-here"]))
    document = server.get("/openapi.json", Authorization=f"Bearer {KEY}").json
    addresses = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert len(addresses) > 10
    wrong = ({}, {"Authorization": "Bearer wrong-key-here"}, {"Authorization": f"Basic {KEY}"}, {"x-api-key": "nope"})
    for method, path in [*addresses, ("GET", "/"), ("GET", "/nothing"), ("POST", "/v1/embeddings")]:
        for headers in wrong:
            answer = server.ask(method, path, b"{}" if method == "POST" else None, headers)
            if path in OPEN_PATHS:
                assert answer.status == 200
            else:
                assert answer.status == 401, (method, path, headers)
                assert KEY.encode() not in answer.body
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": "another-key-here"}):
        assert server.post(PATH, chat(max_tokens=1), **headers).status == 200
    assert server.get("//healthz/../v1/models").status == 401
    assert server.get("/v1/models?x=/healthz").status == 401


def test_anthropic_s_clients_are_refused_in_their_words(serve) -> None:
    server = serve(keys=Keys([KEY]))
    refused = server.post("/v1/messages", {}).json
    assert (refused["type"], refused["error"]["type"]) == ("error", "authentication_error")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no key"), ("# only a remark\n", "no key"), ("short\n", "cannot be one"), ("with a blank\n", "cannot be one"),
     ("schlüssel-äöü\n", "not ASCII")],
)  # fmt: skip
def test_a_file_without_a_sound_key_is_refused(tmp_path, text: str, reason: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InputError, match=reason):
        Keys.read(file)


def test_keys_share_nothing_of_their_prompts_unless_they_are_to(serve) -> None:
    def cached(server: Served, key: str) -> int:
        asked = {"prompt": PROMPT * 4, "max_tokens": 1}
        answer = server.post("/v1/completions", asked, Authorization=f"Bearer {key}")
        return answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]

    keys, piece = Keys([KEY, "another-key-here"]), {"piece": 8}
    apart = serve(keys=keys, engine=piece)
    assert cached(apart, KEY) == 0
    assert cached(apart, KEY) > 0
    assert cached(apart, "another-key-here") == 0
    figures = apart.get("/metrics", Authorization=f"Bearer {KEY}").body.decode()
    assert "coterie_prefix_cache_hits_total 1.0" in figures
    assert "coterie_prefix_cache_queries_total 3.0" in figures
    together = serve(keys=keys, engine=piece, shared_prefixes=True)
    assert cached(together, KEY) == 0
    assert cached(together, "another-key-here") > 0


def test_keys_are_read_line_by_line(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}\n\nanother-key-here\n")
    keys = Keys.read(file)
    assert keys.open_with(KEY)
    assert keys.open_with("another-key-here")
    assert not keys.open_with("")
    assert not keys.open_with("# of the team")
    with pytest.raises(InputError, match="cannot be read"):
        Keys.read(tmp_path / "nothing")


def test_a_request_keeps_its_id_or_gets_one(server: Served) -> None:
    assert server.get("/healthz", **{"X-Request-Id": "my-id.1_2"}).headers["x-request-id"] == "my-id.1_2"
    for hostile in ("a b", "x" * 65, '"}', "a/b", ""):
        made = server.get("/healthz", **{"X-Request-Id": hostile}).headers["x-request-id"]
        assert made.startswith("req_")
    assert server.post(PATH, {}).headers["x-request-id"].startswith("req_")


def test_unknown_addresses_and_methods_are_told_in_json(server: Served) -> None:
    assert (server.get("/v1/nothing").status, server.get("/dashboard/").status) == (404, 404)
    wrong = server.get(PATH)
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert json.loads(wrong.body)["error"]["type"] == "invalid_request_error"


def test_connections_that_say_nothing_keep_nobody_out(server: Served) -> None:
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "[: 10 + number % 50])
        assert server.get("/healthz").status == 200
        assert server.post(PATH, chat(max_tokens=1)).status == 200
