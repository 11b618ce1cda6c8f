"""A real server in a thread, with the bundled model."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp

import coterie
from coterie.engine.loader import load
from coterie.generation import jobs
from coterie.generation.answers import AnswerReader
from coterie.generation.completion import Completion
from coterie.generation.engine import Engine
from coterie.generation.opened import OpenModel
from coterie.server.app import make_app
from coterie.server.gate import Hosts
from coterie.server.meters import Meters
from coterie.server.running import _Protocol
from coterie.server.tls import Tls
from coterie.spec import Event, ExpertsSelected

DATA = Path(__file__).parents[1] / "data"
BUNDLED = Path(coterie.__file__).parent / "bundled"
PROMPT = "And it came to pass"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """Server-sent events: name and data."""
        return list(read_events(self.body.decode()))


def read_events(text: str) -> Iterator[tuple[str | None, Any]]:
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        name = next((line[len("event: ") :] for line in lines if line.startswith("event: ")), None)
        for line in lines:
            if line.startswith("data: "):
                data = line[len("data: ") :]
                yield name, data if data == "[DONE]" else json.loads(data)


@dataclass
class Served:
    """A server that runs."""

    port: int
    engine: Engine
    meters: Meters
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, self.headers | (headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, data, {"Content-Type": "application/json"} | headers)

    def begin(self, path: str, value: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A request whose answer is read by whoever asked."""
        connection = self.connect()
        connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
        return connection, connection.getresponse()


@contextmanager
def listening(app: ASGIApp, **options: Any) -> Iterator[int]:
    """Uvicorn in a thread; gives its port."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=_Protocol, ws="none", lifespan="off", log_level="critical",
        timeout_graceful_shutdown=2, **options,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def serving(
    opened: OpenModel, engine: dict[str, Any] | None = None, *, tls: Tls | None = None, **options: Any
) -> Iterator[Served]:
    """A server for one test, with an engine of such options. The model stays open."""
    meters = Meters()
    made = Engine(opened, watcher=meters, **(engine or {}))
    made.start()
    settings = {"names": ["bundled"], "hosts": Hosts("127.0.0.1")} | options
    app = make_app(made, meters, **settings)
    try:
        with listening(app, **({} if tls is None else tls.options())) as port:
            try:
                yield Served(port, made, meters)
            finally:
                made.cut()
    finally:
        made.close()
        meters.look_away()


@pytest.fixture(scope="module", autouse=True)
def _no_thread_goes_on() -> None:
    """But those of the session's server, which begin when it needs them; others are joined where they are started."""


@pytest.fixture(scope="session")
def opened() -> Iterator[OpenModel]:
    model = load(BUNDLED, expert_memory="50%")
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.fixture(scope="session")
def server(opened: OpenModel) -> Iterator[Served]:
    """One server for all tests that ask for nothing special."""
    with serving(opened) as served:
        yield served


@pytest.fixture
def serve(opened: OpenModel) -> Iterator[Callable[..., Served]]:
    """Starts servers with options of their own; of the engine's, too."""
    with ExitStack() as stack:

        def start(*, engine: dict[str, Any] | None = None, **options: Any) -> Served:
            return stack.enter_context(serving(opened, engine, **options))

        yield start


class Brake:
    """Holds the model where a layer is about to compute, after so many of them."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()
        self.error: BaseException | None = None
        self._left = 0

    def hold(self, after: int = 0) -> None:
        self.reached.clear()
        self.released.clear()
        self._left = after
        self.armed = True

    def release(self) -> None:
        self.released.set()

    armed = False

    def on_event(self, event: Event) -> None:
        if not isinstance(event, ExpertsSelected):
            return
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.armed and self._left:
            self._left -= 1
        elif self.armed:
            self.armed = False
            self.reached.set()
            assert self.released.wait(60)


@pytest.fixture
def brake(opened: OpenModel) -> Iterator[Brake]:
    made = Brake()
    opened.runtime.add_observer(made)
    yield made
    made.release()
    opened.runtime.remove_observer(made)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something to become so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to be")


def drop(connection: http.client.HTTPConnection, response: http.client.HTTPResponse | None = None) -> None:
    """Leaves, as a client does that is killed."""
    with contextlib.suppress(OSError):
        if response is not None:
            response.close()
        connection.close()


def chat(text: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0} | more


def told_of_prompt(tokens: int, **more: int) -> dict[str, int]:
    """What usage tells of a prompt of a text that nobody had asked before, and that is too short to be kept."""
    nothing = dict.fromkeys(("audio_tokens", "cache_write_tokens", "cached_tokens", "image_tokens", "video_tokens"), 0)
    return {**nothing, "text_tokens": tokens} | more


def say(monkeypatch: pytest.MonkeyPatch, *pieces: str) -> None:
    """Has the model answer so, whatever it is asked."""

    class Said:
        in_steps = False

        def __init__(self, *_: Any, on_text: Callable[[str], None], reader: AnswerReader, **__: Any) -> None:
            self.reader = reader
            reader.on_text = on_text

        def search(self, draws: object) -> None:
            for piece in pieces:
                self.reader.feed(piece)

        def end(self) -> Completion:
            reader = self.reader
            reader.end()
            return Completion(prompt_tokens=3, token_ids=(1, 2), text=reader.text, reasoning=reader.reasoning,
                              tool_calls=tuple(reader.calls), finish_reason="stop", prefill_s=0.1,
                              decode_s=0.1)  # fmt: skip

    monkeypatch.setattr(jobs, "Completing", Said)
    monkeypatch.setattr(jobs, "one_by_one", lambda *_: False)
