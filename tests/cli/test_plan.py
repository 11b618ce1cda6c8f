"""`coterie plan`: what is printed, and exit codes."""

import json

import pytest

from planner.machines import a_machine


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.planner.planning.measure_machine", lambda place, **_: a_machine())


def test_one_budget_is_told_in_full(coterie) -> None:
    outcome = coterie("plan", "bundled", "--memory", "4GiB")
    assert outcome.code == 0
    for text in (
        "It will run in 4.00 GiB",
        "keys and values",
        "hit rate",
        "100%: all experts stay in memory",
        "tok/s",
        "first token",
        "the limit",
        "largest context",
        "smallest memory",
        "what would help",
        "KL divergence",
        "coterie chat bundled --memory 4GiB",
    ):
        assert text in outcome.out


def test_a_forecast_of_hits_names_its_grade(coterie) -> None:
    memory = json.loads(coterie("plan", "bundled", "--memory", "4GiB", "--quick", "--json").out)["budgets"][0]["memory"]
    some_experts = memory["minimum"] + (4 << 20)
    outcome = coterie("plan", "bundled", "--memory", str(some_experts), "--quick")
    assert "law: dimensions alone" in outcome.out
    assert "all experts stay in memory once" not in outcome.out


def test_a_budget_that_is_too_small_is_a_negative_answer(coterie) -> None:
    outcome = coterie("plan", "bundled", "--memory", "350MB")
    assert outcome.code == 1
    assert "It will not run in 333.79 MiB, because interpreter and libraries" in outcome.out
    assert "The smallest memory that would do is" in outcome.out
    assert "coterie chat" not in outcome.out


def test_several_budgets_are_a_table(coterie) -> None:
    outcome = coterie("plan", "bundled", "--memory", "350MB", "--memory", "8GiB", "--quick")
    assert outcome.code == 0
    small, large = (line for line in outcome.out.splitlines() if line.strip().startswith(("333.79 MiB", "8.00 GiB")))
    assert "will not run" in small
    assert "100%" in large


def test_a_store_that_is_not_made_yet(coterie) -> None:
    outcome = coterie("plan", "bundled", "--memory", "4GiB", "--scheme", "int4", "--context", "512")
    assert "as a store: experts int4" in outcome.out
    assert "coterie extract bundled ./bundled-int4 --scheme int4" in outcome.out
    assert "coterie chat ./bundled-int4 --memory 4GiB --max-context 512" in outcome.out
    assert "to prepare" in outcome.out


def test_json(coterie) -> None:
    found = json.loads(coterie("plan", "bundled", "--memory", "4GiB", "--json").out)
    assert found["schema_version"] == 1
    assert found["budgets"][0]["memory"]["enough"]
    assert found["machine"]["bus"] == 30e9


def test_a_probe_is_a_text_or_a_file(coterie, tmp_path) -> None:
    text = "The river was high, and nobody crossed it before the evening. " * 3
    (tmp_path / "text.txt").write_text(text)
    asked = ("plan", "bundled", "--memory", "4GiB", "--context", "256", "--quick", "--json", "--probe")
    as_text, in_a_file = (json.loads(coterie(*asked, given).out) for given in (text, str(tmp_path / "text.txt")))
    assert as_text["budgets"][0]["hit_rate"]["grade"] == "probe"
    assert as_text["budgets"][0]["hit_rate"] == in_a_file["budgets"][0]["hit_rate"]
    outcome = coterie(*asked, "no.txt")
    assert outcome.code == 1
    assert "There is no file no.txt. Check the path; or give the text itself, in quotes." in " ".join(
        outcome.err.split()
    )
