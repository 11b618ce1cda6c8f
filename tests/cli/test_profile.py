import json
import sqlite3
import threading
import urllib.request

import pytest

from coterie.profiles import ProfileDatabase
from profiles.conftest import (  # noqa: F401 - fixtures
    planted,
    planted_once,
    postgresql,
    postgresql_server,
    write_profile,
)
from profiles.contents import contents
from profiles.synthetic import IDENTITY, Router, run_facts


def test_shows_what_a_profile_holds(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("profile", "show", str(planted))
    assert outcome.code == 0
    assert f"tiny (TinyMoe), fingerprint {IDENTITY}" in outcome.out
    assert "1 runs, 24 segments, 3,072 tokens; 2 banks, 16 experts" in outcome.out
    assert [line.split() for line in outcome.out.splitlines()[3:6]] == [
        ["text", "code", "prompt", "1,024"], ["text", "law", "prompt", "1,024"], ["text", "prose", "prompt", "1,024"],
    ]  # fmt: skip
    found = json.loads(coterie("profile", "show", str(planted), "--json").out)
    assert found["schema_version"] == 1
    assert found["models"][0]["domains"] == {"code": 1024, "law": 1024, "prose": 1024}
    assert found["models"][0]["banks"][0] == {"component": "text", "layer": 0, "bank": "mlp", "experts": 8, "top_k": 2}


def test_merges(coterie, tmp_path) -> None:
    for seed, name in enumerate("ab"):
        write_profile(tmp_path / name, Router(), {"code": 4}, seed=seed)
    new = tmp_path / "new"
    outcome = coterie("profile", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--into", str(new), "--json")
    assert outcome.code == 0
    assert [(r["segments"], r["same"]) for r in json.loads(outcome.out)["copied"]] == [(2, 0), (2, 0)]
    outcome = coterie("profile", "merge", str(tmp_path / "a"), str(tmp_path / "b"))
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["from", "into", "runs", "segments", "there", "already", "tokens"]
    with ProfileDatabase(tmp_path / "a") as a, ProfileDatabase(new) as merged:
        assert contents(a) == contents(merged)
    assert coterie("profile", "merge", str(new)).code == 2


def test_does_not_merge_different_models(coterie, tmp_path) -> None:
    write_profile(tmp_path / "a", Router(), {"code": 2})
    write_profile(tmp_path / "b", Router(), {"code": 2}, run=run_facts(identity="f" * 32, model="other"))
    outcome = coterie("profile", "merge", str(tmp_path / "a"), str(tmp_path / "b"))
    assert outcome.code == 1
    assert IDENTITY in outcome.err
    assert "f" * 32 in outcome.err
    assert coterie("profile", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--several-models").code == 0
    assert "Say which" in coterie("profile", "export", str(tmp_path / "a")).err
    assert json.loads(coterie("profile", "export", str(tmp_path / "a"), "--model", "ff").out)["model"] == "other"
    assert len(json.loads(coterie("profile", "show", str(tmp_path / "a"), "--json").out)["models"]) == 2


def test_synchronises_with_a_server(coterie, tmp_path, postgresql) -> None:  # noqa: F811
    write_profile(tmp_path / "a", Router(), {"code": 4})
    outcome = coterie("profile", "sync", str(tmp_path / "a"), postgresql, "--json")
    assert outcome.code == 0, outcome.err
    assert [report["segments"] for report in json.loads(outcome.out)["copied"]] == [0, 2]
    assert coterie("profile", "sync", str(tmp_path / "new"), postgresql, "--direction", "pull").code == 0
    with ProfileDatabase(tmp_path / "a") as a, ProfileDatabase(tmp_path / "new") as new:
        assert contents(a) == contents(new)
    outcome = coterie("profile", "sync", str(tmp_path / "a"), "http://127.0.0.1:9", "--direction", "push")
    assert (outcome.code, "can only be read" in outcome.err) == (2, True)
    outcome = coterie("profile", "sync", str(tmp_path / "a"), "http://127.0.0.1:9")
    assert (outcome.code, "does not answer" in outcome.err) == (1, True)


def test_exports(coterie, planted, tmp_path) -> None:  # noqa: F811
    whole = json.loads(coterie("profile", "export", str(planted)).out)
    assert (whole["schema_version"], len(whole["experts"])) == (1, 16)
    outcome = coterie("profile", "export", str(planted), "--format", "jsonl", "-o", str(tmp_path / "out.jsonl"))
    assert (outcome.code, outcome.out) == (0, "")
    head, *experts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert experts == whole.pop("experts")
    assert head == whole
    schema = json.loads(coterie("profile", "export", "--schema").out)
    assert schema["title"] == "SharedProfile"
    assert set(schema["properties"]) == {*whole, "experts"}
    assert set(schema["$defs"]["SharedExpert"]["properties"]) == set(experts[0])
    assert coterie("profile", "export").code == 2
    assert coterie("profile", "export", str(planted), "-o", str(tmp_path / "no" / "x")).code == 2


def test_publishes(coterie, planted, monkeypatch) -> None:  # noqa: F811
    import uvicorn

    seen = []

    def run(server: uvicorn.Server) -> None:
        thread = threading.Thread(target=uvicorn.Server.serve_once, args=(server,), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/domains", timeout=20) as response:
            seen.append(json.loads(response.read()))
        server.should_exit = True
        thread.join(20)

    monkeypatch.setattr(uvicorn.Server, "serve_once", uvicorn.Server.run, raising=False)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    outcome = coterie("profile", "publish", str(planted), "--port", str(free_port()))
    assert outcome.code == 0, outcome.err
    assert "read-only" in outcome.err
    assert seen[0]["domains"]["code"] == 1024


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_that_is_taken_is_named(coterie, planted) -> None:  # noqa: F811
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = coterie("profile", "publish", str(planted), "--port", str(port))
    assert outcome.code == 1
    assert f"127.0.0.1:{port} cannot be listened at" in outcome.err


@pytest.mark.parametrize("arguments", [("show",), ("export",), ("publish",)])
def test_what_is_no_profile_is_said(coterie, tmp_path, arguments) -> None:
    outcome = coterie("profile", *arguments, str(tmp_path / "none"))
    assert (outcome.code, "There is no profile" in outcome.err) == (1, True)
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE recipes (id)")
    connection.close()
    outcome = coterie("profile", *arguments, str(tmp_path / "other"))
    assert (outcome.code, "no profile" in outcome.err) == (1, True)
