"""What fails beneath a server: whom it concerns is told why, the others get what is theirs."""

import errno
import itertools
import os
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coterie.engine.loader import load
from coterie.generation.opened import OpenModel
from coterie.records.files import PositionedFile
from coterie.records.reads import RecordReader
from server.conftest import BUNDLED, Answer, Served, chat, serving, until
from server.test_media import encoded, picture

PROMPTS = ("And it came to pass", "In the beginning", "The king said", "Then shall the")
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


def asked(path: str, prompt: str, *, stream: bool) -> dict[str, object]:
    """The same in each of the shapes."""
    if path == "/v1/completions":
        return {"prompt": prompt, "max_tokens": 5, "temperature": 0, "stream": stream}
    if path == "/v1/responses":
        return {"input": prompt, "max_output_tokens": 5, "temperature": 0, "stream": stream}
    return chat(prompt, max_tokens=5, stream=stream) | ({"model": "bundled"} if path == "/v1/messages" else {})


def text_of(path: str, answer: Answer) -> str | None:
    """What was answered; None for an error, which has to be one in the shape of the address."""
    if answer.headers["content-type"] != "application/json":
        return _streamed(path, answer)
    if answer.status != 200:
        assert (answer.status, answer.error["type"]) == (500, "api_error" if "messages" in path else "server_error")
        return None
    said = answer.json
    if path == "/v1/messages":
        return said["content"][0]["text"]
    if path == "/v1/responses":
        return said["output"][0]["content"][0]["text"]
    choice = said["choices"][0]
    return choice["text"] if path == "/v1/completions" else choice["message"]["content"]


def _streamed(path: str, answer: Answer) -> str | None:
    events = [event for event in answer.events if event[1] != "[DONE]"]
    datas = [data for _, data in events]
    name, last = events[-1]
    if path == "/v1/messages":
        if name == "error":
            assert (last["type"], last["error"]["type"]) == ("error", "api_error")
            return None
        assert name == "message_stop"
        return "".join(data["delta"].get("text", "") for data in datas if data["type"] == "content_block_delta")
    if path == "/v1/responses":
        if name == "response.failed":
            assert last["response"]["error"]["message"]
            return None
        return last["response"]["output"][0]["content"][0]["text"]
    assert answer.events[-1][1] == "[DONE]"
    if "error" in last:
        assert last["error"]["type"] == "server_error"
        return None
    choices = [data["choices"][0] for data in datas]
    return "".join(one["text"] if "text" in one else one["delta"].get("content") or "" for one in choices)


class Disk:
    """Reads of experts of which some fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.every = 0
        self.failed = 0
        numbers, read = itertools.count(1), PositionedFile.read_at

        def read_at(file: PositionedFile, buffer: memoryview, offset: int) -> int:
            if self.every and next(numbers) % self.every == 0:
                self.failed += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(file, buffer, offset)

        patch.setattr(PositionedFile, "read_at", read_at)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_reads_that_fail_end_the_requests_that_need_them(serve, disk: Disk) -> None:
    server: Served = serve(engine={"most_waiting": 32})
    every = [(path, prompt) for path in PATHS for prompt in PROMPTS]
    expected = {one: text_of(one[0], server.post(one[0], asked(*one, stream=False))) for one in every}

    def ask(number: int) -> str:
        path, prompt = every[number % len(every)]
        answer = server.post(path, asked(path, prompt, stream=number % 3 == 0))
        assert str(BUNDLED.parent).encode() not in answer.body
        said = text_of(path, answer)
        assert said in (None, expected[path, prompt])
        return "failed" if said is None else "answered"

    disk.every = 30
    with ThreadPoolExecutor(6) as pool:
        ends = Counter(pool.map(ask, range(32)))
    assert disk.failed
    assert set(ends) == {"answered", "failed"}
    until(lambda: server.engine.running == server.engine.waiting == 0)
    assert server.engine.governor.held == server.engine.governor.promised == 0
    disk.every = 0
    assert server.get("/readyz").status == 200
    assert all(text_of(path, server.post(path, asked(path, prompt, stream=True))) == expected[path, prompt]
               for path, prompt in every[::5])  # fmt: skip


def test_when_experts_cannot_be_read_any_more_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        """Ends a thread."""

    model = load(BUNDLED, expert_memory="30%")
    try:
        with serving(OpenModel.of(model)) as server:
            path, dying = "/v1/completions", threading.Event()
            assert server.post(path, asked(path, PROMPTS[0], stream=False)).status == 200
            running = server.begin(path, asked(path, PROMPTS[1], stream=True) | {"max_tokens": 500})
            running[1].readline()

            def dies(*_: object) -> None:
                dying.set()
                raise Death

            monkeypatch.setattr(RecordReader, "prepare", dies)
            # Who runs is told; whoever comes then is not taken on.
            assert b'"code": "ReadError"' in running[1].read()
            running[0].close()
            assert dying.is_set()
            assert server.get("/readyz").json["error"]["message"] == "Not ready: experts cannot be read any more."
            assert server.get("/healthz").status == 200
            refused = server.post(path, asked(path, PROMPTS[0], stream=False))
            assert (refused.status, refused.error["code"]) == (503, "unavailable")
    finally:
        model.coterie.close()


def with_picture() -> dict[str, object]:
    url = f"data:image/png;base64,{encoded(picture('PNG'))}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return chat(max_tokens=1) | {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(("code", "told"), [(errno.ENOSPC, "insufficient_storage"), (errno.EMFILE, "unavailable")])
def test_a_picture_that_cannot_be_put_into_a_file(serve, monkeypatch, tmp_path: Path, code: int, told: str) -> None:
    server: Served = serve()
    expected = server.post("/v1/chat/completions", with_picture()).json["choices"]
    with monkeypatch.context() as patch:
        if code == errno.ENOSPC:
            patch.setattr(tempfile, "tempdir", str(tmp_path))

            def full(path: Path, data: bytes) -> int:
                raise OSError(code, os.strerror(code), str(path))

            patch.setattr(Path, "write_bytes", full)
        else:

            def mkdtemp(*_: object, **__: object) -> str:
                raise OSError(code, os.strerror(code), "/tmp/somewhere")

            patch.setattr(tempfile, "mkdtemp", mkdtemp)
        refused = server.post("/v1/chat/completions", with_picture())
    assert (refused.status, refused.error["code"]) == (503, told)
    assert "/tmp" not in refused.error["message"]
    assert list(tmp_path.iterdir()) == []
    assert server.post("/v1/chat/completions", with_picture()).json["choices"] == expected


def test_a_request_for_which_there_is_no_thread_is_no_one_else_s_trouble(serve, monkeypatch) -> None:
    server: Served = serve()
    path = "/v1/completions"
    whole = asked(path, PROMPTS[0], stream=False)
    expected = text_of(path, server.post(path, whole))
    several = whole | {"n": 3, "temperature": 1, "seed": 1, "stream": True}
    submit, left = server.engine._preparers.submit, [1]

    def none_left(*arguments: object, **more: object) -> object:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return submit(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(server.engine._preparers, "submit", none_left)
        told = [data for _, data in server.post(path, several).events]
        assert (told[-2]["error"]["type"], told[-1]) == ("server_error", "[DONE]")
        assert server.post(path, whole).status == 500
    until(lambda: server.engine.running == server.engine.waiting == 0)
    assert text_of(path, server.post(path, whole)) == expected
