"""The dashboard's pages and what they are told; a browser uses them in tests/clients."""

import json
import re
from pathlib import Path

import pytest

from coterie.server import pages
from coterie.server.keys import Keys
from profiles.conftest import write_profile
from profiles.synthetic import Router, run_facts, shapes
from server.conftest import Served, chat, until
from server.test_meters import figures

KEY = "a-key-of-some-length"
FOLDER = Path(pages.__file__).with_name("dashboard")


def test_all_files_are_served_and_there_are_no_others(server: Served) -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(pages.PAGES.values())
    for path, name in pages.PAGES.items():
        answer = server.get(path)
        assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        again = server.get(path, **{"If-None-Match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"
    for path in ("/dashboard/../gate.py", "/dashboard/%2e%2e/gate.py", "/dashboard/", "/dashboard/index.html"):
        assert server.get(path).status == 404
    assert server.post("/", {}).status == 405


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        # The policy forbids both.
        assert "innerHTML" not in text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\bon(click|load|submit)=|\bstyle=", text), path.name


def test_pages_need_no_key_and_figures_do(serve, opened) -> None:
    server = serve(keys=Keys([KEY]))
    for path in pages.PAGES:
        assert server.get(path).status == 200
    for path in ("/coterie/state", "/coterie/model", "/coterie/profile"):
        assert server.get(path).status == 401
        assert server.get(path, Authorization=f"Bearer {KEY}").status in (200, 404)
    assert server.get("/", Host="evil.example").status == 421
    assert server.get("/coterie/state", Origin="https://evil.example").status == 403


def test_the_map_shows_what_the_metrics_say(server: Served) -> None:
    assert server.post("/v1/chat/completions", chat()).status == 200
    state, found = server.get("/coterie/state").json, figures(server)
    assert len(state["layers"]) == 8
    for layer in state["layers"]:
        labels = tuple(sorted((name, str(layer[name])) for name in ("component", "layer", "bank")))

        def figure(name: str, labels: tuple = labels) -> float:
            return found[f"coterie_layer_{name}", labels]

        assert sum(layer["asked"]) == figure("expert_choices_total") > 0
        assert len(layer["asked"]) == 32
        assert len(layer["resident"]) == figure("expert_cache_experts")
        assert layer["requested"] == figure("experts_requested_total")
        assert layer["requested"] - layer["hits"] == figure("expert_misses_total")
        assert layer["decode_union"] == figure("decode_expert_union_total")
        assert layer["decode_rows"] == figure("decode_rows_total")
    assert sum(len(layer["resident"]) for layer in state["layers"]) == state["experts"]["resident"]
    assert state["experts"]["requested"] == found["coterie_experts_requested_total", ()]
    assert state["tokens"]["decode"] == found[
        "coterie_computed_tokens_total", (("component", "thinker"), ("phase", "decode"))
    ]  # fmt: skip
    assert state["memory"]["budget_bytes"] is None
    assert state["queue"] == {"running": 0, "waiting": 0, "trouble": None}


def test_what_the_model_consists_of(server: Served) -> None:
    model = server.get("/coterie/model").json
    assert model["precisions"] == ["bf16"]
    assert [len(layer["precision"]) for layer in model["layers"]] == [32] * 8
    assert {kind for layer in model["layers"] for kind in layer["precision"]} == {0}
    assert model["input_modalities"] == ["text", "image", "audio", "video"]
    assert model["profile"] is False


def test_looking_leaves_no_line_in_the_log(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "coterie.server")
    server.get("/coterie/state")
    server.get("/coterie/model")

    def noted() -> set[str]:
        return {record.facts["path"] for record in caplog.records}

    until(lambda: "/coterie/model" in noted())
    assert "/coterie/state" not in noted()


def test_without_a_profile_there_is_none_to_be_asked(server: Served) -> None:
    for answer in (server.get("/coterie/profile"), server.post("/coterie/profile/rank", {"domain": "code"})):
        assert (answer.status, answer.error["code"]) == (404, "no_profile")
    assert server.post("/coterie/profile/rank", {"domain": "code", "path": "/etc/passwd"}).status == 400


def test_a_profile_is_asked(serve, opened, tmp_path: Path) -> None:
    where = tmp_path / "secret-place.db"
    facts = run_facts(shapes(layers=1), identity=opened.runtime.source.identity)
    router = Router(layers=1, planted={(0, "code"): (3,)})
    write_profile(where, router, {"code": 16, "prose": 16}, run=facts)
    server = serve(profile=where)
    ranked = server.post("/coterie/profile/rank", {"domain": "code", "limit": 1}).json
    assert [(one["layer"], one["expert_id"], one["specialist"]) for one in ranked["experts"]] == [(0, 3, True)]
    refused = server.post("/coterie/profile/rank", {"domain": "cod"})
    assert refused.status == 400
    assert "'cod'" in refused.error["message"]
    where.write_bytes(b"damaged")
    broken = server.get("/coterie/profile")
    assert broken.status == 500
    assert "secret-place" not in json.dumps(broken.json)
