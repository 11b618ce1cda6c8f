"""The server before replicas, with replicas in this process that all have the bundled model."""

import json
from collections.abc import AsyncGenerator, Iterator

import pytest

from coterie.generation.engine import Engine
from coterie.server.app import make_app
from coterie.server.gate import Gate, Hosts
from coterie.server.keys import Keys
from coterie.server.meters import Meters
from coterie.server.replicas.answer import LostReplica
from coterie.server.replicas.ask import Ask, Part
from coterie.server.replicas.front import Front
from coterie.server.replicas.replica import answered
from server.conftest import PROMPT, Served, chat, drop, listening, until


class Here:
    """A cluster in this process. ``losses`` says after how many parts each next request loses its replica."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.meters = Meters()
        self.app = make_app(engine, self.meters, names=["bundled"], hosts=None)
        self.losses: list[int] = []
        self.asked: list[Ask] = []
        self.down: str | None = None

    async def ask(self, ask: Ask) -> AsyncGenerator[Part]:
        self.asked.append(ask)
        left = self.losses.pop(0) if self.losses else None
        parts = answered(self.app, ask)
        try:
            async for part in parts:
                if left == 0:
                    raise LostReplica
                left = None if left is None else left - 1
                yield part
        finally:
            await parts.aclose()

    async def figures(self) -> list[bytes]:
        return [self.meters.text()] * 2

    async def trouble(self) -> str | None:
        return self.down


@pytest.fixture(scope="module")
def served(opened) -> Iterator[tuple[Served, Here]]:
    engine = Engine(opened)
    engine.start()
    here = Here(engine)
    front = Front(here, ping_s=0.05)
    gate = Gate(front, hosts=Hosts("127.0.0.1"), keys=None, meters=front.meters, paths=front.paths)
    with listening(gate) as port:
        yield Served(port, engine, Meters()), here
    engine.close()


@pytest.fixture(autouse=True)
def untroubled(served) -> Iterator[None]:
    yield
    served[1].losses.clear()
    served[1].asked.clear()
    served[1].down = None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "seed": 5, "temperature": 1.0}),
        ("/v1/messages", chat(model="bundled")),
    ],
)
def test_an_answer_is_that_of_a_replica(served, path: str, value: object) -> None:
    front, here = served
    whole = front.post(path, value)
    assert whole.status == 200, whole.body
    here.losses = [1, 0]
    again = front.post(path, value)
    assert len(here.asked) == 4
    changes = {"id", "created"}
    assert {k: v for k, v in again.json.items() if k not in changes} == {
        k: v for k, v in whole.json.items() if k not in changes
    }
    assert whole.headers["x-request-id"] == here.asked[0].request_id
    assert "x-coterie" not in str(whole.headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_without_a_seed_goes_on_with_the_same_random_numbers(served, path: str) -> None:
    front, here = served
    here.losses = [5, 3]
    events = front.post(path, chat(model="bundled", temperature=1.0, max_tokens=12, stream=True)).events
    assert len(here.asked) == 3
    assert "error" not in json.dumps(events)
    if path == "/v1/messages":
        assert [name for name, _ in events][-1] == "message_stop"
        assert sum(name == "message_start" for name, _ in events) == 1
    else:
        assert events[-1][1] == "[DONE]"
        assert len({data["id"] for _, data in events[:-1]}) == 1
        assert sum("role" in data["choices"][0]["delta"] for _, data in events[:-1]) == 1


LONG = " ".join(["it came to pass"] * 130)


@pytest.mark.parametrize("lost_after", [4, 6, 9])
def test_a_lost_replica_ends_no_stream_that_tells_how_far_its_prompt_is(served, lost_after: int) -> None:
    front, here = served
    here.engine.prefixes.clear()
    here.losses = [lost_after]
    asked = {"input": LONG, "stream": True, "return_progress": True, "max_output_tokens": 4, "temperature": 0}
    events = front.post("/v1/responses", asked).events
    assert len(here.asked) == 2
    assert events[-1][1] == "[DONE]"
    assert [data["sequence_number"] for _, data in events[:-1]] == [*range(len(events) - 1)]
    assert (events[-2][0], "error" in dict(events)) == ("response.incomplete", False)
    whole = front.post("/v1/responses", {name: asked[name] for name in ("input", "max_output_tokens", "temperature")})
    deltas = "".join(data["delta"] for name, data in events if name == "response.output_text.delta")
    assert deltas == whole.json["output"][0]["content"][0]["text"]


def test_replicas_tell_what_of_a_prompt_was_not_computed_again(served) -> None:
    front, here = served
    here.engine.prefixes.clear()
    path, asked = "/v1/completions", {"prompt": LONG, "max_tokens": 1, "temperature": 0}
    first, again = (front.post(path, asked).json["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2))
    assert (first, again) == (0, 512)
    here.losses = [1]
    assert front.post(path, asked).json["usage"]["prompt_tokens_details"]["cached_tokens"] == 512


def test_every_address_is_counted_for_itself(served) -> None:
    front = served[0]
    for path in ("/props", "/v1/messages/count_tokens", "/dashboard/app.js"):
        front.get(path)
    text = front.get("/metrics").body.decode()
    for path, status in (("/props", 200), ("/v1/messages/count_tokens", 405), ("/dashboard/app.js", 200)):
        assert f'coterie_http_responses_total{{path="{path}",replica="front",status="{status}"}}' in text
    described = front.get("/openapi.json").json["paths"]
    assert {path.replace(":path", "") for path in Front(served[1]).paths} >= set(described)


def test_what_is_wrong_is_said_as_a_replica_says_it(served) -> None:
    front, here = served
    answer = front.post("/v1/completions", {"prompt": 5})
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    assert front.get("/nowhere").status == 404
    assert front.post("/v1/completions", b"{").error["code"] == "invalid_json"
    assert front.ask("POST", "/v1/completions", b"{}", {"Content-Type": "text/plain"}).status == 415
    here.losses = [0] * 9
    answer = front.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1})
    assert (answer.status, answer.error["code"]) == (502, "replica_lost")


def test_the_front_lets_in_whom_a_server_lets_in(served) -> None:
    front, here = served
    assert front.get("/v1/models", Host="evil.example").status == 421
    assert front.get("/v1/models", Origin="http://evil.example").status == 403
    assert not here.asked


def test_a_key_is_wanted_and_not_passed_on(served, tmp_path) -> None:
    here = served[1]
    front = Front(here)
    path = tmp_path / "keys"
    path.write_text("a-key-of-some-length\n")
    gate = Gate(front, hosts=Hosts("127.0.0.1"), keys=Keys.read(path), meters=front.meters, paths=front.paths)
    with listening(gate) as port:
        locked = Served(port, served[0].engine, Meters())
        assert locked.get("/v1/models").status == 401
        assert locked.get("/healthz").status == 200
        assert locked.get("/v1/models", Authorization="Bearer a-key-of-some-length").status == 200
        assert b"authorization" not in dict(here.asked[-1].headers)


def test_health_and_figures_are_the_fronts_own(served) -> None:
    front, here = served
    assert front.get("/readyz").json == {"status": "ready"}
    here.down = "no replica runs"
    answer = front.get("/readyz")
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    assert front.get("/healthz").json == {"status": "ok"}
    text = front.get("/metrics").body.decode()
    assert 'coterie_http_responses_total{path="/readyz",replica="front",status="503"}' in text
    assert 'replica="0"' in text
    assert 'replica="1"' in text
    assert text.count("# TYPE coterie_http_responses_total") + text.count("# TYPE coterie_http_responses ") <= 1


def test_a_client_that_leaves_is_given_up_by_the_replica(served, brake) -> None:
    front, here = served
    brake.hold()
    connection, response = front.begin("/v1/chat/completions", chat(stream=True, max_tokens=200))
    assert brake.reached.wait(30)
    drop(connection, response)
    brake.release()
    until(lambda: here.engine.running == 0)
