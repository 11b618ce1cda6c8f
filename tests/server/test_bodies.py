"""Bodies that mean no good: none of them gets a 5xx, or anything but an error with a name."""

import http.client
import json
import socket
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.server.bodies import Bodies
from server.conftest import Served, chat

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses",
         "/tokenize", "/detokenize", "/apply-template")  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b'{"a": 1, "a": 2}', b"{" * 100_000,
        b"[" * 1_000_000, b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"prompt": [' + b"1," * 300_000 + b"1]}",
        b'{"max_tokens": ' + b"9" * 5000 + b"}", b'\xef\xbb\xbf{"prompt": "x"}', b'{"temperature": 1e999}',
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_request_is_a_400(server: Served, path: str, body: bytes) -> None:
    answer = server.post(path, body)
    assert answer.status == 400, answer.body
    assert answer.error["message"]


def said(server: Served, *sent: bytes) -> bytes:
    """How a server's answer begins; it may have closed the connection before all is sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with suppress(ConnectionError):
            for part in sent:
                connection.sendall(part)
        return connection.recv(100)


def test_a_body_that_is_too_large_is_not_read(serve) -> None:
    server = serve(bodies=Bodies(nbytes=10_000))
    assert server.post(PATHS[0], chat("x" * 20_000)).status == 413
    # Nor one that does not say how large it is.
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunks = (b"1000\r\n" + b"x" * 4096 + b"\r\n", b"4000\r\n" + b"x" * 16384 + b"\r\n")
    answer = said(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *chunks)
    assert answer.startswith(b"HTTP/1.1 413")
    assert server.post(PATHS[0], chat(max_tokens=1)).status == 200


def test_a_body_that_does_not_come_is_not_waited_for(serve) -> None:
    server = serve(bodies=Bodies(seconds=0.2))
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert said(server, f"{head}Content-Length: 100\r\n\r\n{{".encode()).startswith(b"HTTP/1.1 408")
    assert server.post(PATHS[0], chat(max_tokens=1)).status == 200


def test_compressed_bodies_are_refused(server: Served) -> None:
    assert server.post(PATHS[0], b"\x1f\x8b", **{"Content-Encoding": "gzip"}).status == 415


def test_what_is_no_http_is_told_so(server: Served) -> None:
    for data in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /" + b"a" * 70_000):
        assert said(server, data).startswith(b"HTTP/1.1 4")
    assert server.get("/healthz").status == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["text", "user", "assistant", "image_url", "data:image/png;base64,AAAA", "file:///etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "image_url", "url", "input_audio", "data", "format", "x"]),
        inner, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
FIELDS = st.sampled_from([
    "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "n",
    "stream_options", "logprobs", "tools", "response_format", "system", "stop_sequences", "prompt", "model",
    "metadata", "content", "tokens", "add_special", "input", "instructions", "reasoning", "text", "include", "store",
])  # fmt: skip
BASES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/messages": {"model": "bundled", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [5]},
}


@settings(max_examples=200)
@given(path=st.sampled_from(sorted(BASES)), field=FIELDS, value=VALUES)
def test_no_value_of_any_field_breaks_the_server(server: Served, path: str, field: str, value: object) -> None:
    asked = BASES[path] | {field: value}
    if field in ("max_tokens",) and isinstance(value, int) and value > 1:
        return
    answer = server.post(path, json.dumps(asked).encode())
    assert answer.status in (200, 400, 404), (asked, answer.body)
    assert answer.status == 200 or answer.error["message"]


def test_headers_have_a_limit_and_ranges_no_effect(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/v1/models", headers={"X-Long": "x" * (1 << 20)})
    assert connection.getresponse().status == 400
    connection.close()
    ranges = "bytes=" + ",".join(f"{n}-{n}" for n in range(3000))
    answer = server.get("/openapi.json", Range=ranges)
    assert answer.body == server.get("/openapi.json").body
