import json
from pathlib import Path

import pytest

from planner.machines import a_machine

SHORT = ("--prompt-tokens", "12", "--new-tokens", "4", "--threads", "1", "--quiet")


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.planner.planning.measure_machine", lambda place, **_: a_machine())


def test_the_forecast_stands_beside_what_was_measured(coterie) -> None:
    outcome = coterie("bench", "bundled", *SHORT, "--expert-memory", "25%", "--runs", "1")
    line = next(line for line in outcome.out.splitlines() if line.startswith("forecast"))
    assert line.count("…") == 5
    assert "law: dimensions alone" in outcome.err
    found = json.loads(coterie("bench", "bundled", *SHORT, "--runs", "1", "--expert-memory", "25%", "--json").out)
    assert found["forecast"]["share"] == pytest.approx(0.25, abs=0.01)
    assert found["forecast"]["hit_rate"]["grade"] == "law"
    without = coterie("bench", "bundled", *SHORT, "--runs", "1", "--no-forecast", "--json")
    assert "forecast" not in json.loads(without.out)


def test_json_has_every_run_and_the_breakdown(coterie) -> None:
    outcome = coterie("bench", "bundled", *SHORT, "--expert-memory", "25%", "--breakdown", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert (found["schema_version"], found["model"]) == (1, "bundled")
    first, second = found["runs"]
    assert first["prompt_tokens"] == second["prompt_tokens"] == 12
    assert first["new_tokens"] == 4
    assert first["prefill_bytes_read"] > 0
    assert 0 <= second["hit_rate"] <= 1
    assert first["decode_tokens_per_s"] == 1 / first["step_s"]
    parts = found["breakdown"]
    assert abs(sum(parts["parts"].values()) - parts["step_s"]) < 1e-9
    assert parts["calls"]["experts"] == 8


def test_page_explains_the_parts(coterie, tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text("the cat and the dog", encoding="utf-8")
    outcome = coterie("bench", "bundled", *SHORT, "--runs", "1", "--breakdown", "--file", str(text))
    assert outcome.code == 0
    for words in ("ms per token", "hit rate", "waiting", "until experts were read", "prompt 12 tokens, 4 new"):
        assert words in outcome.out
    assert "longer" in outcome.err


def test_what_cannot_be_measured(coterie, tmp_path: Path) -> None:
    bad = tmp_path / "prompt.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in coterie("bench", "bundled", *SHORT, "--file", str(bad)).err
    bad.write_text("", encoding="utf-8")
    assert "no tokens" in coterie("bench", "bundled", *SHORT, "--file", str(bad)).err
    assert coterie("bench", "bundled", "--new-tokens", "2").code == 2
