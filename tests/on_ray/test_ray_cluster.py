"""Replicas on a real Ray of several processes on this machine: `make test-ray`."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

REPLICAS = 2
STARTS_S = 180


class Server:
    """A server with replicas, as its clients see it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def ask(self, method: str, path: str, value: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def pids(self) -> list[int]:
        """Processes that serve, those of this server only: descendants of its process."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, name = (folder / "cmdline").read_bytes(), int(folder.name)
                if command.startswith(b"ray::ServeReplica") and self.process.pid in ancestors(name):
                    found.append(name)
            except OSError:
                continue
        return sorted(found)


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        parent = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
        found.add(parent)
        pid = parent
    return found


def start(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coterie", "serve", "bundled", "--port", "0", "--ray", "local", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
            return int(match[1])
    raise AssertionError("".join(seen))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    process = start("--replicas", str(REPLICAS), "--memory", "1GiB", "--threads", "1")
    try:
        yield Server(process, port_of(process))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(90) == 0
        finally:
            process.kill()
            assert process.stderr is not None
            process.stderr.close()


def wishes(number: int) -> dict[str, Any]:
    """Some are greedy, some seeded; each has one right answer."""
    kind = number % 6
    drawn = {"temperature": 0.9, "seed": kind} if kind % 2 else {"temperature": 0}
    return {"prompt": f"In the year {kind} the king", "max_tokens": 60, **drawn}


def text_of(server: Server, number: int, *, stream: bool) -> str:
    status, body = server.ask("POST", "/v1/completions", wishes(number) | {"stream": stream})
    assert status == 200, body
    if not stream:
        return json.loads(body)["choices"][0]["text"]
    events = [line[len("data: ") :] for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(one) for one in events[:-1]]
    assert all("error" not in chunk for chunk in chunks), chunks
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 1
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_each_replica_answers(server: Server) -> None:
    assert server.ask("GET", "/readyz") == (200, '{"status":"ready"}')
    assert len(server.pids()) == REPLICAS
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: text_of(server, 0, stream=False), range(8)))) == 1
    figures = server.ask("GET", "/metrics")[1]
    assert {f'replica="{number}"' for number in range(REPLICAS)} <= set(re.findall(r'replica="\d+"', figures))


def test_a_replica_that_is_killed_under_load_loses_and_mixes_no_answer(server: Server) -> None:
    right = [text_of(server, number, stream=False) for number in range(6)]
    assert len(set(right)) > 3
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(text_of, server, number, stream=number % 4 < 2) for number in range(36)]
        for _ in range(2):
            time.sleep(2)
            os.kill(server.pids()[0], signal.SIGKILL)
        found = [one.result(timeout=300) for one in asked]
    assert found == [right[number % 6] for number in range(36)]
    until_replicas = time.monotonic() + STARTS_S
    while len(server.pids()) < REPLICAS:
        assert time.monotonic() < until_replicas
        time.sleep(0.5)
    assert text_of(server, 1, stream=True) == right[1]


def test_what_is_wrong_with_a_request_is_said(server: Server) -> None:
    status, body = server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": -1})
    assert status == 400
    assert json.loads(body)["error"]["param"] == "max_tokens"


def test_a_budget_that_is_too_small_is_said_in_the_models_words() -> None:
    process = start("--replicas", "1", "--memory", "300MiB")
    _, told = process.communicate(timeout=STARTS_S)
    assert process.returncode == 1
    assert "Error: No replica could start: A memory budget of 300.00 MiB is too small" in " ".join(told.split())
