"""Salience and adapted experts from the command line."""

import json
import random
from pathlib import Path

import pytest

from zoo.sizes import TEXT_IDS

FAST = ("--expert-memory", "100%")


def test_generate_writes_salience_and_the_same_text(coterie, model, tmp_path: Path) -> None:
    command = ("generate", model, "w3 w4 w5", "-n", "6", "--greedy", *FAST)
    plain = coterie(*command)
    outcome = coterie(*command, "--salience", str(tmp_path / "s.json"))
    assert (outcome.code, outcome.out) == (0, plain.out)
    found = json.loads((tmp_path / "s.json").read_text())
    assert [one["phase"] for one in found["tokens"]] == ["prefill"] * 3 + ["decode"] * 5
    assert found["schema_version"] == 1


def test_generate_with_fewer_experts(coterie, model, tmp_path: Path) -> None:
    command = ("generate", model, "w3 w4 w5", "-n", "9", "--greedy", *FAST, "--stats")
    requests = []
    for how in ((), ("--adapt-experts", "gate:1"), ("--adapt-experts", "wake")):
        assert coterie(*command, str(tmp_path / "stats.json"), *how).code == 0
        requests.append(json.loads((tmp_path / "stats.json").read_text())["total"]["decode_requested"])
    every, gate, wake = requests
    assert every == 8 * 2 * 2
    assert every / 2 <= gate < every  # of equal weights both stay
    assert every / 2 <= wake <= every


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize(("how", "message"), [("wakes", "Did you mean 'wake'"), ("gate:x", "gate:0.2")])
def test_an_unknown_way_is_told_before_a_model_is_opened(command, how, message, coterie, tmp_path: Path) -> None:
    argument = ("hello",) if command == "generate" else ("--text", "none.txt")
    outcome = coterie(command, str(tmp_path), *argument, "--adapt-experts", how)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_evaluate_tells_the_price(coterie, model, tmp_path: Path) -> None:
    chosen = random.Random(0)
    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(60)))
    options = ("--against", model, "--text", str(text), "--context", "24", *FAST, "--json")
    outcome = coterie("evaluate", model, *options, "--adapt-experts", "wake")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["adapt_experts"] == "wake"
    assert found["total"]["comparison"]["kld"]["value"] > 0
