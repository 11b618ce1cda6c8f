"""Clients of `coterie serve`, each with a conversation about pictures that comes to be as long as the context."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cgroup import CgroupRun, run_in_cgroup

LONGEST_S = 900
_TURNS = 2
_WORDS = ("And", "it", "came", "to", "pass", "in", "those", "days", "that", "there", "went", "out", "a", "decree")


@dataclass(frozen=True, slots=True)
class Client:
    """One who asks.

    Attributes:
        number: Which one; says what it asks.
        words: Of its first question.
        new: Tokens of each answer.
    """

    number: int
    words: int
    new: int = 16

    def talk(self, url: str) -> list[dict[str, Any]]:
        """Has its conversation; returns the answers, as the server tells them."""
        draw = random.Random(self.number)
        messages: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        for turn in range(_TURNS):
            words = " ".join(draw.choice(_WORDS) for _ in range(self.words if turn == 0 else 20))
            # The same one in every turn, which stays in the conversation; some share theirs with another client.
            shown = {"type": "image_url", "image_url": {"url": _picture(self.number % 5)}}
            messages.append({"role": "user", "content": [shown, {"type": "text", "text": words}]})
            choice = ask(url, self._request(messages, draw.randrange(1000)))["choices"][0]
            answers.append({name: choice[name] for name in ("message", "logprobs", "finish_reason")})
            messages.append({"role": "assistant", "content": choice["message"]["content"] or "It is so."})
        return answers

    def _request(self, messages: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
        chosen = {"temperature": 1.0, "seed": seed} if self.number % 2 else {"temperature": 0}
        return {"messages": messages, "max_tokens": self.new, "logprobs": True, "top_logprobs": 1, **chosen}


def _picture(number: int) -> str:
    """A picture of some millions of pixels, as clients send it."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(number).integers(0, 256, (100 + 20 * number, 200, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.kron(small, np.ones((10, 10, 1), np.uint8))).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def ask(url: str, request: dict[str, Any]) -> Any:
    """One request; says what the server says where it refuses it."""
    data = json.dumps(request).encode()
    asked = urllib.request.Request(f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=LONGEST_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code}: {error.read().decode()}") from error


def at_once(clients: Sequence[Client], url: str) -> list[Any]:
    """What each is answered, all of them asking at the same time."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(lambda one: one.talk(url), clients))


def one_by_one(clients: Sequence[Client], url: str) -> list[Any]:
    """What each is answered when nobody else asks."""
    return [one.talk(url) for one in clients]


def served(
    options: Sequence[object], limit: int | None, work: Callable[[str], Any], *, env: dict[str, str] | None = None
) -> tuple[CgroupRun, Any]:
    """Serves in a memory cgroup while there is work.

    Args:
        options: Of ``coterie serve``, the model first.
        limit: Bytes of the cgroup.
        work: Is given the address; the server ends when it returns.
        env: Added to the server's environment.

    Returns:
        What the server held, and what the work returned.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        noted = Path(directory) / "process"
        command = [
            "/bin/sh", "-c", 'echo $$ > "$0.new" && mv "$0.new" "$0" && exec "$@"', noted,
            sys.executable, "-m", "coterie", "serve", *map(str, options), "--port", str(port),
        ]  # fmt: skip
        running = pool.submit(run_in_cgroup, command, limit, env=env, timeout_s=LONGEST_S)
        url = f"http://127.0.0.1:{port}"
        try:
            while not _ready(url):
                if running.done():
                    raise RuntimeError(f"It does not serve: {running.result().stderr[-2000:]}")
                time.sleep(0.1)
            made = work(url)
        except BaseException:
            if running.done():
                print(running.result().stderr[-2000:], file=sys.stderr)
            raise
        finally:
            if not running.done() and noted.exists():
                os.kill(int(noted.read_text()), signal.SIGTERM)
        return running.result(), made


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False
