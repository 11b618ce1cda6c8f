"""A server that is told to end while many ask: what was promised is answered, and all else is refused."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.conftest import PROMPT
from server.crowd.client import Answer, Asked, Client
from server.crowd.crowd import crowd, learn
from server.process import Process

_REFUSED = {"unavailable", "shutting_down"}


def requests() -> list[Asked]:
    """Whole answers and streams, of which the last have more choices than are with the model at a time."""
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "temperature": 0}
    text = {"prompt": PROMPT, "max_tokens": 16, "temperature": 1, "seed": 3}
    asked = {
        "/v1/completions": [text, text | {"stream": True}, text | {"prompt": [PROMPT] * 12, "max_tokens": 2},
                            text | {"prompt": [PROMPT] * 12, "max_tokens": 2, "stream": True}],
        "/v1/chat/completions": [chat, chat | {"stream": True}],
        "/v1/messages": [chat | {"model": "tools"}, chat | {"model": "tools", "stream": True}],
    }  # fmt: skip
    return [Asked.of(f"{path} {number}", path, one) for path, some in asked.items() for number, one in enumerate(some)]


def end_of(found: Answer, right: Answer) -> str:
    """What became of a request."""
    status, said = found
    if found == right:
        return "answered"
    if status == 503 and (isinstance(said, dict) and _code(said) in _REFUSED):
        return "refused"
    if status == 200 and isinstance(said, list) and any(_code(data) in _REFUSED for _, data in said):
        return "cut"
    return f"wrong: {found}"


def _code(data: Any) -> str | None:
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict):
        return None
    # Anthropic's clients are told no code.
    return "shutting_down" if error.get("type") in ("overloaded_error", "api_error") else error.get("code")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "drain", "code"),
    [
        ([signal.SIGTERM], "60", 0),
        ([signal.SIGINT], "60", 130),
        ([signal.SIGTERM], "0", 0),
        ([signal.SIGTERM, signal.SIGTERM], "60", 0),
        ([signal.SIGINT, signal.SIGINT], "60", 130),
    ],
)
def test_what_was_promised_is_answered(
    start: Callable[..., Process], tmp_path: Path, signals: list[int], drain: str, code: int
) -> None:
    server = start("--queue", "128", "--drain", drain)
    known = learn(server, requests())
    hurried = drain == "0" or len(signals) > 1
    draws, signalled, ends, lock = random.Random(7), threading.Event(), Counter[str](), threading.Lock()

    def go_on(client: Client) -> bool:
        with lock:
            asked = draws.choice(list(known))
        late = signalled.is_set()
        try:
            end = end_of(client.ask(asked, "one"), known[asked])
        except ConnectionError as error:
            # Nobody listens any more. Whoever had asked before is told so, unless there is no time for that.
            end = "not heard" if late or (hurried and signalled.is_set()) else f"wrong: {asked.name}: {error!r}"
        with lock:
            ends[end] += 1
        return end == "answered"

    def tell() -> None:
        deadline = time.monotonic() + 120
        while ends["answered"] < 24 and time.monotonic() < deadline:
            time.sleep(0.02)
        signalled.set()
        for number in signals:
            server.process.send_signal(number)
            time.sleep(0.3)

    telling = threading.Thread(target=tell)
    telling.start()
    clients = crowd(server, known, go_on)
    telling.join()
    assert [one for client in clients for one in client.wrong] == []
    assert server.process.wait(90) == code
    assert set(ends) <= {"answered", "refused", "cut", "not heard"}, ends
    assert ends["answered"] >= 24
    assert ends["refused"] + ends["cut"] + ends["not heard"] == len(clients)
    assert hurried or ends["cut"] == 0
    assert server.out == ""
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [line for line in server.log if line["level"] not in ("info", "debug")] == []
    assert "Traceback" not in server.said
