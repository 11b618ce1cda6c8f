"""A profile over HTTP, asked by a real client of a real server."""

import contextlib
import http.client
import json
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from coterie.errors import ProfileConnectionError, ProfileFormatError
from coterie.profiles import Profile, ProfileDatabase, RemoteProfile, rank_experts, sync
from coterie.profiles import admission as admission_module
from coterie.profiles import remote as remote_module
from coterie.profiles.admission import local_names
from coterie.profiles.bounded_get import BoundedClient
from coterie.profiles.exchange import run_to_json, segment_to_json
from coterie.profiles.publication import make_app, server_config
from profiles.conftest import write_profile
from profiles.contents import contents
from profiles.synthetic import IDENTITY, Router, run_facts

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def ending() -> Iterator[list[threading.Thread]]:
    """Servers that were told to end, which takes them some tenths of a second: nobody waits for each by itself."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def serve(ending: list[threading.Thread]) -> Iterator[Serve]:
    """Publishes a profile; gives the URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(database: ProfileDatabase, **options: Any) -> str:
        server = uvicorn.Server(server_config(make_app(database, **options), host="127.0.0.1", port=0))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        ending.append(thread)


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_experts_of_a_domain_are_ranked(serve, planted) -> None:
    with ProfileDatabase(planted) as database:
        url = serve(database)
        status, answer = get(f"{url}/v1/experts?domain=code&limit=3")
        assert (status, answer["schema_version"]) == (200, 1)
        ranking = answer["ranking"]
        assert (ranking["specialists"], len(ranking["experts"])) == (1, 3)
        expected = rank_experts(Profile.read(database), domain="code", limit=3).experts[0]
        assert ranking["experts"][0]["q_value"] == expected.q_value
        assert (ranking["experts"][0]["layer"], ranking["experts"][0]["expert_id"]) == (0, 3)
        _, domains = get(f"{url}/v1/domains")
        assert domains["domains"] == {"code": 1024, "law": 1024, "prose": 1024}
        # What is recorded meanwhile is seen.
        write_profile(planted, Router(), {"code": 2}, seed=5)
        assert get(f"{url}/v1/domains")[1]["domains"]["code"] == 1024 + 128


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/experts?domain=cod", 400, "Did you mean 'code'"),
        ("/v1/experts", 400, "A domain or a modality is needed"),
        ("/v1/experts?domain=code&limit=99999", 400, "no number from 0 to 1000"),
        ("/v1/experts?domain=code&limit=-1", 400, "no number"),
        ("/v1/experts?domain=code&sort=up", 400, "Unknown parameter 'sort'"),
        ("/v1/experts?domain=code&model=ffff", 404, "is about another model"),
        ("/v1/segments", 400, "Say which run"),
        ("/v1/segments?run=x", 404, "has no run x"),
        ("/v1/segments?run={run}&numbers=1,x", 400, "no list of numbers"),
        ("/v1/segments?run={run}&numbers=0,1,2,3,4,5,6,7,8", 400, "At most 8 segments"),
        ("/v1/nothing", 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_said(serve, planted, path, status, message) -> None:
    with ProfileDatabase(planted) as database:
        found, answer = get(serve(database) + path.format(run=database.runs()[0].uuid))
    assert found == status
    assert message in answer["error"]


@pytest.mark.parametrize(
    "path",
    ["/v1/segments?run=x", "/v1/vocabulary?run=x", "/v1/experts?domain=code&model=x", "/v1/domains?model=x",
     "/v1/domains", "/v1/experts?domain=code", "/v1/models?x=1"],
)  # fmt: skip
def test_no_answer_tells_where_the_profile_lies(serve, planted, path: str) -> None:
    write_profile(planted, Router(), {"code": 2}, run=run_facts(identity="another"))
    with ProfileDatabase(planted) as database:
        url = serve(database)
        status, answer = get(url + path)
        assert status >= 400
        assert planted.name not in json.dumps(answer)
        with sqlite3.connect(planted) as connection:
            connection.execute("UPDATE profile_runs SET model = 5.5, started = x'00'")
        connection.close()
        status, answer = get(url + path)
        assert status >= 400
        assert planted.name not in json.dumps(answer)


def raw(url: str, sent: bytes) -> bytes:
    """What a server says to these bytes until it closes the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        found = b""
        # A server that reads no further than it has to resets the connection after its answer.
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
        return found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"POST /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v1/models?a=%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/segments?run=%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000, 400),
    ],
)
def test_every_answer_is_json(serve, planted, sent: bytes, status: int) -> None:
    with ProfileDatabase(planted) as database:
        head, _, body = raw(serve(database), sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert json.loads(body)["schema_version"] == 1
    assert json.loads(body)["error"]


def test_who_asks_too_much_is_told_when_to_come_again(serve, planted, monkeypatch) -> None:
    monkeypatch.setattr(admission_module, "MOST_REQUESTS", 0)
    with ProfileDatabase(planted) as database:
        url = serve(database)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/v1/models", timeout=20)
        assert caught.value.code == 503
        assert caught.value.headers["Retry-After"] == "5"
        assert "Too many" in json.loads(caught.value.read())["error"]
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(
                BoundedClient(url, sleep=lambda _: monkeypatch.setattr(admission_module, "MOST_REQUESTS", 64)).get,
                "/v1/models",
                1 << 20,
            )
            assert json.loads(waiting.result(20))["models"]


@pytest.mark.timeout(60)
def test_who_says_nothing_locks_nobody_out(serve, planted, monkeypatch) -> None:
    monkeypatch.setattr(admission_module, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(admission_module, "MOST_CONNECTIONS", 80)
    with ProfileDatabase(planted) as database, contextlib.ExitStack() as stack:
        url = serve(database)
        host, _, port = url.removeprefix("http://").partition(":")
        idle = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(200)]
        for one in idle[100:]:
            with contextlib.suppress(OSError):
                one.sendall(b"GET /v1/models HTTP/1.1\r\nX: ")
        assert get(f"{url}/v1/models")[0] == 200
        # Each of them is closed, though it goes on with its head a byte at a time.
        for one in idle:
            with contextlib.suppress(OSError):
                one.settimeout(0.01)
                while True:
                    try:
                        if not one.recv(1000):
                            break
                    except TimeoutError:
                        one.sendall(b"x")


@pytest.mark.timeout(60)
def test_a_connection_may_be_used_again_but_not_kept(serve, planted, monkeypatch) -> None:
    monkeypatch.setattr(admission_module, "HEAD_TIMEOUT_S", 1.0)
    with ProfileDatabase(planted) as database:
        host, _, port = serve(database).removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        for _ in range(3):
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
        assert connection.sock.recv(1) == b""


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("127.0.0.1:8383", 200), ("localhost:1", 200), ("LOCALHOST", 200), ("[::1]:8383", 200),
     ("proxy.example", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[::1", 200),
     ("[]", 421)],
)  # fmt: skip
def test_a_server_for_this_machine_answers_to_its_own_names(serve, planted, host: str, status: int) -> None:
    names = local_names("127.0.0.1")
    assert names is not None
    with ProfileDatabase(planted) as database:
        url = serve(database, hosts={*names, "proxy.example"})
        request = urllib.request.Request(f"{url}/v1/domains", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                found, answer = response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            found, answer = error.code, json.loads(error.read())
    assert found == status
    assert ("domains" in answer) == (status == 200)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("my.example", False),
    ],
)
def test_addresses_of_this_machine_alone_are_known(host: str, local: bool) -> None:
    assert (local_names(host) is not None) == local


def test_nothing_can_be_written(serve, planted) -> None:
    with ProfileDatabase(planted) as database:
        url = serve(database)
        for method in ("POST", "PUT", "DELETE"):
            request = urllib.request.Request(f"{url}/v1/runs", method=method, data=b"{}")
            with pytest.raises(urllib.error.HTTPError, match="405"):
                urllib.request.urlopen(request, timeout=20)


def test_an_instance_can_be_pulled_from(serve, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remote_module, "_RUNS_PER_PAGE", 2)
    monkeypatch.setattr(remote_module, "_DIGESTS_PER_PAGE", 3)
    path = tmp_path / "source.db"
    for seed in range(3):
        write_profile(path, Router(), {"code": 9}, seed=seed, run=run_facts(label="private"))
    with ProfileDatabase(path) as source, ProfileDatabase(tmp_path / "here.db", create=True) as here:
        remote = RemoteProfile(serve(source))
        assert remote.identities() == {IDENTITY: "tiny"}
        (report,) = sync(here, remote)
        assert (report.runs, report.segments) == (3, 15)
        assert sync(here, remote)[0].segments == 0
        theirs, ours = contents(source), contents(here)
        for uuid, known in theirs.items():
            assert ours[uuid]["segments"] == known["segments"]
            # Neither counts of tokens nor labels are given away unasked.
            assert ours[uuid]["tokens"] == {}
            assert ours[uuid]["run"].label == ""
        assert [s.number for s in remote.segments(next(iter(theirs)))] == [0, 1, 2, 3, 4]
        shared = RemoteProfile(serve(source, share_vocabulary=True, share_labels=True))
        with ProfileDatabase(tmp_path / "all.db", create=True) as whole:
            sync(whole, shared)
            assert contents(whole) == theirs


class Liar(BaseHTTPRequestHandler):
    """Answers every request with what a test prepared."""

    answers: dict[str, Any] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        body = self.answers.get(self.path.partition("?")[0], b"{}")
        body = body if isinstance(body, bytes) else json.dumps({"schema_version": 1, **body}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def liar() -> Iterator[tuple[str, dict[str, Any]]]:
    Liar.answers = {}
    server = HTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Liar.answers
    server.shutdown()
    thread.join(20)
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>hello</html>", "answers something else than a profile"),
        (b"[1]", "answers something else than a profile"),
        (b'{"schema_version": 2}', "speaks version 2; this Coterie speaks 1"),
        ({"models": [{"name": "x"}]}, "answers something else than a profile"),
        ({"models": 7}, "answers something else than a profile"),
    ],
)
def test_servers_of_something_else_are_told_apart(liar, answer, message) -> None:
    url, answers = liar
    answers["/v1/models"] = answer
    with pytest.raises(ProfileConnectionError, match=message):
        RemoteProfile(url).identities()


def test_answers_without_end_are_cut_short(liar, monkeypatch) -> None:
    url, answers = liar
    monkeypatch.setattr(remote_module, "MAX_ANSWER_BYTES", 1000)
    answers["/v1/models"] = {"models": [{"identity": "x" * 2000, "model": "m"}]}
    with pytest.raises(ProfileConnectionError, match="more than 1000 bytes"):
        RemoteProfile(url).identities()


def test_pages_without_end_are_noticed(liar) -> None:
    url, answers = liar
    answers["/v1/runs"] = {"runs": [run_to_json(run_facts())], "more": True}
    with pytest.raises(ProfileFormatError, match="again and again"):
        RemoteProfile(url).runs()


def test_an_address_where_nothing_answers_is_named() -> None:
    with pytest.raises(ProfileConnectionError, match=r"http://127\.0\.0\.1:9 does not answer"):
        RemoteProfile("http://me:secret@127.0.0.1:9/").identities()


def change(value: Any, path: str, new: Any) -> None:
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for step in way:
        value = value[step]
    if new is None:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("number", -1),
        ("number", "0"),
        ("number", 2**31),
        ("digest", "0" * 32),
        ("banks", None),
        ("banks/0/layer", 17),
        ("banks/0/component", 5),
        ("banks/0/groups/0/domain", ""),
        ("banks/0/groups/0/domain", "a\u0007b"),
        ("banks/0/groups/0/modality", "smell"),
        ("banks/0/groups/0/tokens", True),
        ("banks/0/groups/0/tokens", 10**30),
        ("banks/0/groups/0/entropy_sum", float("nan")),
        ("banks/0/groups/0/activations", "AAAA"),
        ("banks/0/groups/0/activations", "not base64!"),
        ("banks/0/groups/0/gate_mass", 7),
        ("banks/0/pairs", "eNo="),
        ("banks/0/pairs", "AAAA"),
        ("banks", [1]),
        ("banks", 3),
    ],
)
def test_segments_that_cannot_be_are_refused(liar, planted, tmp_path: Path, path, new) -> None:
    url, answers = liar
    with ProfileDatabase(planted) as source, ProfileDatabase(tmp_path / "here.db", create=True) as here:
        run = source.runs()[0]
        segment = segment_to_json(next(source.segments(run.uuid)))
        answers["/v1/models"] = {"models": [{"identity": IDENTITY, "model": "tiny"}]}
        answers["/v1/runs"] = {"runs": [run_to_json(run)], "more": False}
        answers["/v1/segments"] = {"segments": [segment], "more": False}
        answers["/v1/vocabulary"] = {"shared": False}
        assert next(RemoteProfile(url).segments(run.uuid, [0])).number == 0
        listed = json.loads(json.dumps(segment))
        change(segment, path, new)
        answers["/v1/segments"] = {"segments": [segment], "more": False}
        if path != "banks" or new is not None:
            with pytest.raises((ProfileFormatError, ProfileConnectionError)):
                list(RemoteProfile(url).segments(run.uuid, [0]))
        with pytest.raises((ProfileFormatError, ProfileConnectionError)):
            sync(here, RemoteProfile(url))
        assert not here.digests(run.uuid)
        assert listed["digest"]


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("uuid", "../../etc"),
        ("identity", ""),
        ("identity", "x" * 65),
        ("model", "x" * 256),
        ("label", "a\0b"),
        ("banks", [{"component": "text", "layer": 0, "bank": "mlp", "experts": 10**6, "top_k": 1}]),
        ("banks/0/top_k", 9),
        ("banks/1/layer", 0),
        ("started", None),
    ],
)
def test_runs_that_cannot_be_are_refused(liar, path, new) -> None:
    url, answers = liar
    run = run_to_json(run_facts())
    change(run, path, new)
    answers["/v1/runs"] = {"runs": [run], "more": False}
    with pytest.raises((ProfileFormatError, ProfileConnectionError)):
        RemoteProfile(url).runs()
