"""``coterie serve`` as a process: from its start to its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coterie.cli import serve as serve_module

URL = re.compile(r"http://[\d.]+:\d+")


class Process:
    """A server that was started by the command line."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        environment = os.environ | {"TMPDIR": str(temporary), "COLUMNS": "200", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coterie", "serve", "bundled", "--memory", "2GiB", "--port", "0", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if (found := URL.search(line)) is not None:
                self.url = found.group()
                return
        raise AssertionError("".join(self.lines))

    def ask(self, path: str, value: object = None, **headers: str) -> tuple[int, bytes]:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def end(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        out, rest = self.process.communicate(timeout=60)
        assert out == ""
        return self.process.returncode, "".join(self.lines) + rest


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def run(*arguments: str) -> Process:
        made.append(Process(*arguments, temporary=tmp_path))
        return made[-1]

    yield run
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_server_serves_and_leaves_nothing(start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-this-test\n")
    server = start("--api-key-file", str(keys), "--alias", "my-model")
    key = {"Authorization": "Bearer a-key-for-this-test"}
    asked = {"model": "my-model", "prompt": "And it came to pass", "max_tokens": 3, "temperature": 0}
    assert server.ask("/readyz")[0] == 200
    assert server.ask("/v1/completions", asked)[0] == 401
    status, body = server.ask("/v1/completions", asked, **key)
    assert status == 200
    assert (json.loads(body)["model"], json.loads(body)["choices"][0]["text"]) == ("my-model", ", that he")
    with urllib.request.urlopen(_stream(server, asked, key), timeout=60) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert b"coterie_num_requests_running 0.0" in server.ask("/metrics", **key)[1]
    left, said = server.end(signal.SIGINT)
    assert left == 130, said
    requests = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [one["status"] for one in requests] == [200, 401, 200, 200, 200]
    assert "And it came" not in said
    assert "a-key" not in said
    assert "Traceback" not in said
    assert [file.name for file in tmp_path.iterdir()] == ["keys"]


def _stream(server: Process, asked: dict, headers: dict) -> urllib.request.Request:
    data = json.dumps(asked | {"stream": True}).encode()
    return urllib.request.Request(
        f"{server.url}/v1/completions", data, {"Content-Type": "application/json"} | headers
    )  # fmt: skip


@pytest.mark.parametrize("drain", [pytest.param("30", marks=pytest.mark.slow), "0"])
def test_sigterm_lets_what_runs_finish_or_cuts_it(start, tmp_path: Path, drain: str) -> None:
    server = start("--drain", drain)
    asked = {"prompt": "And it came to pass", "max_tokens": 60 if drain == "30" else 4000, "temperature": 0}
    with urllib.request.urlopen(_stream(server, asked, {}), timeout=60) as response:
        assert response.readline().startswith(b"data: ")
        server.process.send_signal(signal.SIGTERM)
        rest = response.read()
    out, said = server.process.communicate(timeout=60)
    assert (server.process.returncode, out) == (0, ""), said
    assert rest.endswith(b"data: [DONE]\n\n")
    assert (b'"finish_reason": "length"' in rest) is (drain == "30")
    assert (b'"code": "shutting_down"' in rest) is (drain == "0")
    (request,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert request["status"] == 200
    assert "And it came" not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_an_error(coterie) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = coterie("serve", "bundled", "--memory", "2GiB", "--port", str(port))
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert f"127.0.0.1:{port} cannot be listened at: Address already in use. Choose another port: --port." in said


def test_without_a_key_others_cannot_reach_it(coterie) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        outcome = coterie("serve", "bundled", "--host", host)
        assert outcome.code == 2
        assert "there is no key. Add --api-key-file FILE." in outcome.err


def test_keys_are_looked_at_before_the_model(coterie, tmp_path: Path) -> None:
    outcome = coterie("serve", "bundled", "--api-key-file", str(tmp_path / "nothing"))
    assert outcome.code == 1
    assert "cannot be read" in outcome.err


def test_a_directory_for_prompts_is_looked_at_before_the_model(coterie, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(0o755)
    outcome = coterie("serve", "bundled", "--port", "0", "--prefix-dir", str(tmp_path / "open"))
    assert outcome.code == 2
    assert "chmod 700" in outcome.err
    outcome = coterie("serve", "bundled", "--port", "0", "--prefix-dir-limit", "1GiB")
    assert outcome.code == 2
    assert "--prefix-dir DIR" in outcome.err


def test_what_is_missing_is_told_with_how_to_get_it(coterie, monkeypatch) -> None:
    monkeypatch.setattr(serve_module, "_PACKAGES", ("starlette", "no_such_package"))
    outcome = coterie("serve", "bundled")
    assert outcome.code == 1
    assert "Serving needs no_such_package, which is not installed. Install it: pip install" in outcome.err
    assert "prometheus-client" in outcome.err
