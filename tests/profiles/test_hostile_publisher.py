"""A publisher that means harm: whatever it sends, its reader stays small, comes to an end and says what is wrong."""

import base64
import contextlib
import copy
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from coterie.errors import CoterieError, ProfileError
from coterie.profiles import ProfileDatabase, RemoteProfile, sync
from coterie.profiles import bounded_get as bounded_get_module
from coterie.profiles import remote as remote_module
from coterie.profiles.bounded_get import BoundedClient
from coterie.profiles.exchange import run_to_json, segment_to_json, vocabulary_to_json
from fuzzing import Watch, cases, mutate, scramble
from profiles.bombs import bomb
from profiles.small_readers import SmallReaders, small_readers
from profiles.synthetic import IDENTITY, run_facts, shapes

Answer = Callable[[BaseHTTPRequestHandler, dict[str, str]], Any]
UUID = "00000000-0000-4000-8000-000000000000"


class Handler(BaseHTTPRequestHandler):
    """Answers by functions of the path: with JSON, with bytes, or in their own way."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body does not wait until its head is acknowledged
    answers: dict[str, Answer] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.asked.append(self.path)
        found = self.answers[url.path](self, {name: value[0] for name, value in parse_qs(url.query).items()})
        if found is None:
            return
        body = found if isinstance(found, bytes) else json.dumps({"schema_version": 1, **found}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def publisher() -> Iterator[tuple[str, dict[str, Answer]]]:
    Handler.answers = {}
    Handler.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler.answers
    server.shutdown()
    server.socket.close()


def fixed(value: Any) -> Answer:
    return lambda handler, parameters: value


def a_run(uuid: str = UUID, **changes: Any) -> dict[str, Any]:
    return run_to_json(run_facts()) | {"uuid": uuid} | changes


def a_bank(layer: int = 0, experts: int = 8, top_k: int = 2) -> dict[str, Any]:
    return {"component": "text", "layer": layer, "bank": "mlp", "experts": experts, "top_k": top_k}


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def endless(name: str, item: Callable[[int], Any]) -> Answer:
    """Pages of a list that has no end."""
    count = 0

    def answer(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> Any:
        nonlocal count
        limit = int(parameters.get("limit", 4))
        found = [item(count + place) for place in range(limit)]
        count += limit
        return {name: found, "more": True}

    return answer


def group_of(experts: int) -> dict[str, Any]:
    return {
        "modality": "text", "domain": "code", "phase": "prompt", "tokens": 1,
        "entropy_sum": 0.0, "entropy_squares": 0.0,
        "activations": packed(bytes(4 * experts)), "gate_mass": packed(bytes(8 * experts)),
        "reap_sum": packed(bytes(8 * experts)), "reap_counts": packed(bytes(4 * experts)),
    }  # fmt: skip


def pairs_of_many_experts() -> dict[str, Answer]:
    experts = 14_000
    pairs = packed(bomb(4 * (experts * (experts - 1) // 2)))
    segment = {
        "number": 0,
        "digest": "0" * 32,
        "banks": [a_bank(0, experts) | {"groups": [group_of(experts)], "pairs": pairs}],
    }
    return {
        "/v1/runs": fixed({"runs": [a_run(banks=[a_bank(0, experts)])], "more": False}),
        "/v1/segments": fixed({"segments": [segment], "more": False}),
    }


def pairs_of_many_banks() -> dict[str, Answer]:
    experts, banks = 2_000, 4_000
    pairs = packed(bomb(4 * (experts * (experts - 1) // 2)))
    listed = [a_bank(layer, experts) for layer in range(banks)]
    segment = {
        "number": 0, "digest": "0" * 32,
        "banks": [bank | {"groups": [], "pairs": pairs} for bank in listed],
    }  # fmt: skip
    return {
        "/v1/runs": fixed({"runs": [a_run(banks=listed)], "more": False}),
        "/v1/segments": fixed({"segments": [segment], "more": False}),
    }


def vocabulary_of_zeros(entries: int = 1 << 24, experts: int = 8) -> dict[str, Answer]:
    head = np.array([experts, entries], "<u4").tobytes()
    counts = packed(head + bomb(14 * entries + 8 * experts))
    banks = [a_bank(layer, experts) for layer in range(64)]
    vocabulary = {"banks": [bank | {"segments": 1, "counts": counts} for bank in banks], "totals": []}
    return {
        "/v1/runs": fixed({"runs": [a_run(banks=banks)], "more": False}),
        "/v1/segments": fixed({"segments": [], "more": False}),
        "/v1/vocabulary": fixed({"shared": True, "vocabulary": vocabulary}),
    }


BOMBS: dict[str, Callable[[], dict[str, Answer]]] = {
    "pairs of 14,000 experts": pairs_of_many_experts,
    "pairs of 4,000 banks": pairs_of_many_banks,
    "token counts": vocabulary_of_zeros,
    "token counts, less each": lambda: vocabulary_of_zeros(1 << 21),
    "dropped counts of 65,535 experts": lambda: vocabulary_of_zeros(0, 65_535),
    "200 MiB of lists": lambda: {
        "/v1/models": fixed(b'{"schema_version":1,"models":[' + b"[]," * (200 << 20 >> 2) + b"[]]}")
    },
    "60 MiB of lists": lambda: {
        "/v1/models": fixed(b'{"schema_version":1,"models":[' + b"[]," * (60 << 20 >> 2) + b"[]]}")
    },
    "deep lists": lambda: {"/v1/models": fixed(b'{"schema_version":1,"models":' + b"[" * 1_000_000)},
    "runs without end": lambda: {
        "/v1/runs": endless(
            "runs",
            lambda n: a_run(f"{n:08x}-0000-4000-8000-000000000000", banks=[a_bank(layer) for layer in range(4096)]),
        )
    },
    "segments without end": lambda: {
        "/v1/runs": fixed({"runs": [a_run()], "more": False}),
        "/v1/segments": endless("segments", lambda n: {"number": n, "digest": f"{n:032x}"}),
    },
    "a million models": lambda: {
        "/v1/models": fixed({"models": [{"identity": f"{n:x}", "model": "m"} for n in range(400_000)]})
    },
}

READ = """
def read(url, path):
    with ProfileDatabase(path, create=True) as here:
        try:
            sync(here, RemoteProfile(url))
        except ProfileError as error:
            print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def readers() -> Iterator[SmallReaders]:
    with small_readers(READ) as found:
        yield found


@pytest.mark.parametrize("name", list(BOMBS))
def test_what_swells_is_refused_in_one_gibibyte(publisher, readers: SmallReaders, tmp_path: Path, name: str) -> None:
    url, answers = publisher
    answers["/v1/models"] = fixed({"models": [{"identity": IDENTITY, "model": "tiny"}]})
    answers["/v1/vocabulary"] = fixed({"shared": False})
    answers |= BOMBS[name]()
    done = readers.run(url, str(tmp_path / "here.db"))
    assert done.code == 0
    assert done.out.startswith("Profile"), done.out
    assert len(done.out) < 1000
    assert done.peak < 1 << 20


def trickle(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            threading.Event().wait(0.05)


def trickled_head(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"x")
            threading.Event().wait(0.05)


def continues(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def silence(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> None:
    threading.Event().wait(3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", [trickle, trickled_head, continues, silence])
def test_who_is_slow_is_waited_for_no_longer_than_patience_lasts(publisher, monkeypatch, answer: Answer) -> None:
    monkeypatch.setattr(bounded_get_module, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(bounded_get_module, "_RECEIVE_TIMEOUT_S", 0.5)
    url, answers = publisher
    answers["/v1/models"] = answer
    with pytest.raises(ProfileError, match="does not answer"):
        RemoteProfile(url).identities()


@pytest.mark.timeout(60)
def test_patience_is_for_all_requests_together(publisher, monkeypatch) -> None:
    """Each request is answered within its time, and there is always another one."""
    monkeypatch.setattr(bounded_get_module, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(bounded_get_module, "_SECONDS_PER_ANSWER", 0.01)
    monkeypatch.setattr(bounded_get_module, "_LEAST_BYTES_PER_S", 1 << 30)
    url, answers = publisher

    def slow(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> Any:
        threading.Event().wait(0.2)
        first = int(parameters.get("after", "-1")) + 1
        listed = range(first, first + int(parameters["limit"]))
        return {"segments": [{"number": number, "digest": "0"} for number in listed], "more": True}

    answers["/v1/segments"] = slow
    with pytest.raises(ProfileError, match="does not answer"):
        RemoteProfile(url).digests(UUID)


def busy(status: int, times: int, headers: dict[str, str], then: Any) -> Answer:
    left = times

    def answer(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> Any:
        nonlocal left
        if left == 0:
            return then
        left -= 1
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        return None

    return answer


@pytest.mark.parametrize(
    ("status", "headers", "waits"),
    [(503, {"Retry-After": "7"}, [7, 7]), (429, {"Retry-After": "0"}, [0, 0]), (503, {}, [1, 2]),
     (503, {"Retry-After": "999999"}, [1, 2]), (429, {"Retry-After": "40"}, [30, 30]),
     (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, [1, 2])],
)  # fmt: skip
def test_who_is_busy_is_asked_again(publisher, status: int, headers: dict[str, str], waits: list[int]) -> None:
    url, answers = publisher
    answers["/x"] = busy(status, 2, headers, b"done")
    waited: list[float] = []
    assert BoundedClient(url, sleep=waited.append).get("/x", 100) == b"done"
    assert waited == waits


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "30"}])
def test_who_is_always_busy_is_given_up(publisher, headers: dict[str, str]) -> None:
    url, answers = publisher
    answers["/x"] = busy(503, 1000, headers, b"")
    waited: list[float] = []
    with pytest.raises(OSError, match="503"):
        BoundedClient(url, sleep=waited.append).get("/x", 100)
    assert 0 < sum(waited) <= 120


@pytest.mark.parametrize(
    "location",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://localhost:{port}/v1/models", "http://127.0.0.2:{port}/v1/models",
     "http://127.0.0.1:1/", "//evil.example/", "data:text/plain,x", "http://[", "", "gopher://127.0.0.1:{port}/"],
)  # fmt: skip
def test_redirects_elsewhere_are_not_followed(publisher, location: str) -> None:
    url, answers = publisher
    headers = {"Location": location.format(port=url.rpartition(":")[2])}
    answers["/v1/models"] = busy(302, 1000, headers, None)
    with pytest.raises(ProfileError, match=r"does not answer|answers 302"):
        RemoteProfile(url).identities()
    # An empty place is the same page, which is asked for a few times.
    assert len(Handler.asked) == (1 if location else 6)


def test_redirects_to_the_same_server_are_followed(publisher) -> None:
    url, answers = publisher
    answers["/v1/models"] = busy(307, 1, {"Location": "/there"}, None)
    answers["/there"] = fixed({"models": [{"identity": IDENTITY, "model": "tiny"}]})
    assert RemoteProfile(url).identities() == {IDENTITY: "tiny"}


def test_user_and_password_are_sent_and_not_shown(publisher) -> None:
    url, answers = publisher
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler, parameters: dict[str, str]) -> Any:
        seen.append(handler.headers["Authorization"])
        return {"models": []}

    answers["/v1/models"] = answer
    remote = RemoteProfile(url.replace("http://", "http://me:se%2Fcret@"))
    assert remote.identities() == {}
    assert seen == ["Basic " + base64.b64encode(b"me:se/cret").decode()]
    assert remote.name == url


def test_a_server_that_is_none_is_told(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0-x\r\n" * 3), daemon=True).start()
        with pytest.raises(ProfileError, match="does not answer"):
            RemoteProfile(f"http://127.0.0.1:{server.getsockname()[1]}").identities()


@pytest.mark.parametrize("experts", [4, 14_000])
def test_banks_are_those_of_the_runs_that_are_there(publisher, tmp_path: Path, experts: int) -> None:
    url, answers = publisher
    answers["/v1/models"] = fixed({"models": [{"identity": IDENTITY, "model": "tiny"}]})
    answers["/v1/runs"] = fixed({"runs": [a_run(banks=[a_bank(0, experts)])], "more": False})
    with ProfileDatabase(tmp_path / "here.db", create=True) as here:
        here.add_run(run_facts(shapes()))
        with pytest.raises(ProfileError, match=f"has {experts} experts, but it has 8 in other runs"):
            sync(here, RemoteProfile(url))
        assert len(here.runs()) == 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_mutated_answers(publisher, planted, tmp_path: Path) -> None:
    """A result that can be read, or an error of profiles. ``COTERIE_FUZZ=10`` tries ten thousand."""
    url, answers = publisher
    with ProfileDatabase(planted) as source:
        run = source.runs()[0]
        segments = [segment_to_json(segment) for segment in list(source.segments(run.uuid))[:2]]
        honest: dict[str, Any] = {
            "/v1/models": {"models": [{"identity": IDENTITY, "model": "tiny"}]},
            "/v1/runs": {"runs": [run_to_json(run)], "more": False},
            "/v1/segments": {"segments": segments, "more": False},
            "/v1/vocabulary": {"shared": True, "vocabulary": vocabulary_to_json(source.vocabulary(run.uuid))},
        }
    path = tmp_path / "here.db"

    def synchronise() -> None:
        path.unlink(missing_ok=True)
        with ProfileDatabase(path, create=True) as here:
            try:
                sync(here, RemoteProfile(url))
            finally:
                # What was taken can be read, and asked.
                for taken in here.runs():
                    list(here.segments(taken.uuid))
                    here.vocabulary(taken.uuid)

    watch = Watch(ProfileError)
    for case in range(cases(960)):
        rng = random.Random(case)
        sent = {place: {"schema_version": 1, **copy.deepcopy(answer)} for place, answer in honest.items()}
        for place in rng.sample(list(sent), rng.choice((1, 1, 2))):
            mutate(sent[place], rng)
        for place, answer in sent.items():
            body = json.dumps(answer).encode()
            answers[place] = fixed(scramble(body, rng) if rng.random() < 0.05 else body)
        watch.run(case, synchronise)
    watch.check()


def test_limits_are_those_of_the_client(publisher, monkeypatch) -> None:
    url, answers = publisher
    monkeypatch.setattr(remote_module, "MAX_ANSWER_VALUES", 10)
    answers["/v1/models"] = fixed({"models": [{"identity": f"{n}", "model": "m"} for n in range(10)]})
    with pytest.raises(CoterieError, match="answers something else"):
        RemoteProfile(url).identities()
