"""``coterie serve`` as a process: from its start to its end."""

import json
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coterie.cli import serve as serve_module
from server.process import Process


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def run(*arguments: str) -> Process:
        log, environment = tmp_path_factory.mktemp("log"), {"TMPDIR": str(tmp_path)}
        made.append(Process("bundled", "--memory", "2GiB", *arguments, folder=log, environment=environment))
        return made[-1]

    yield run
    for one in made:
        one.kill()


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
    left, said = server.end(signal.SIGINT), server.said
    assert (left, server.out) == (130, ""), said
    assert [one["status"] for one in server.log] == [200, 401, 200, 200, 200]
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
    server = start("--drain", drain, *(["--batching", "fast"] if drain == "0" else []))
    asked = {"prompt": "And it came to pass", "max_tokens": 60 if drain == "30" else 4000, "temperature": 0}
    with urllib.request.urlopen(_stream(server, asked, {}), timeout=60) as response:
        assert response.readline().startswith(b"data: ")
        server.process.send_signal(signal.SIGTERM)
        rest = response.read()
    left, said = server.process.wait(60), server.said
    assert (left, server.out) == (0, ""), said
    assert rest.endswith(b"data: [DONE]\n\n")
    assert (b'"finish_reason": "length"' in rest) is (drain == "30")
    assert (b'"code": "shutting_down"' in rest) is (drain == "0")
    assert ("which may change the last bits of each" in " ".join(said.split())) is (drain == "0")
    (request,) = server.log
    assert request["status"] == 200
    assert "And it came" not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_with_speech_the_whole_of_an_omni_model_is_served(omni: Path, tmp_path: Path) -> None:
    server = Process(str(omni), "--memory", "2GiB", "--speech", "--alias", "omni", folder=tmp_path)
    try:
        model = json.loads(server.ask("/v1/models")[1])["data"][0]
        assert model["voices"] == ["ethan", "chelsie"]
        asked = {"input": "w5 w6", "response_format": "pcm", "coterie": {"max_speech": 0.01, "voice_greedy": True}}
        status, sound = server.ask("/v1/audio/speech", asked)
        assert (status, len(sound) % 2) == (200, 0)
        assert any(sound)
        assert server.end(signal.SIGINT) == 130, server.said
    finally:
        server.kill()


def test_speech_needs_a_model_that_speaks_and_all_of_it(coterie, omni: Path) -> None:
    outcome = coterie("serve", str(omni), "--speech", "--component", "thinker")
    assert outcome.code == 2
    assert "--speech takes the whole model" in outcome.err
    outcome = coterie("serve", "bundled", "--speech", "--port", "0")
    assert outcome.code == 1
    assert "no talker" in outcome.err


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


def test_replicas_answer_exactly(coterie) -> None:
    outcome = coterie("serve", "bundled", "--memory", "2GiB", "--replicas", "2", "--ray", "local", "--batching", "fast")
    assert outcome.code == 2
    assert "Replicas answer exactly" in outcome.err


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
