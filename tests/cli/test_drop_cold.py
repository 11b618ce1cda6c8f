"""`--drop-cold`: what commands say of it, and where they refuse it."""

from __future__ import annotations

import json

import pytest

from coterie.extraction import extract


@pytest.fixture(scope="module")
def store(readable, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("store") / "store"
    extract(readable, directory)
    return str(directory)


SMALL = ("--expert-memory", "40%", "--drop-cold", "1", "--seed", "1", "-n", "24")


def test_generate_says_what_was_left_out(coterie, store, tmp_path) -> None:
    path = tmp_path / "stats.json"
    outcome = coterie("generate", store, "w3 w4 w5", *SMALL, "--stats", str(path))
    assert outcome.code == 0, outcome.err
    stats = json.loads(path.read_text())
    total = stats["total"]
    assert total["left_out"] == sum(layer["left_out"] for layer in stats["layers"]) > 0
    assert total["bytes_not_read"] > 0
    assert f"{total['left_out']} left out (" in outcome.err
    assert "left out" not in coterie("generate", store, "w3 w4 w5", "--expert-memory", "40%", "-n", "4").err


def test_bench_measures_with_it(coterie, store) -> None:
    outcome = coterie("bench", store, "--new-tokens", "4", "--runs", "1", "--drop-cold", "0.1", "--json", "-q")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["runs"][0]["left_out_per_token"] >= 0


def test_evaluate_tells_what_both_models_read(coterie, store, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + i * 7 % 40}" for i in range(60)))
    arguments = ("evaluate", store, "--against", store, "-t", str(text), "--context", "24", "--expert-memory", "40%")
    outcome = coterie(*arguments, "--drop-cold", "1")
    assert outcome.code == 0, outcome.err
    assert "\nfull model: " in outcome.out
    assert " read per token, hit rate " in outcome.out
    assert "experts left out (" in outcome.out
    found = json.loads(coterie(*arguments, "--drop-cold", "1", "--json").out)
    assert found["drop_cold"] == 1.0
    assert found["reads"]["left_out"] > found["full_reads"]["left_out"] == 0
    assert "read per token" not in coterie(*arguments).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "w3", "--drop-cold", "0"), "--drop-cold is a share"),
        (("generate", "w3", "--drop-cold", "0.1", "--record-trace", "t.npz"), "With --drop-cold no trace is recorded"),
        (("generate", "w3", "--drop-cold", "0.1", "--record-profile", "p"), "With --drop-cold no profile is recorded"),
        (("chat", "--drop-cold", "0.1", "--record-profile", "p.db"), "With --drop-cold no profile is recorded"),
        (("serve", "--drop-cold", "0.1", "--record-profile", "p.db"), "With --drop-cold no profile is recorded"),
        (
            ("serve", "--drop-cold", "0.1", "--replicas", "2", "--ray", "local", "--memory", "1GiB"),
            "With --drop-cold it would depend on what the other one has in memory",
        ),
    ],
)
def test_where_it_cannot_be_it_is_refused_before_anything_is_opened(
    arguments, said, coterie, store, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = coterie(arguments[0], store, *arguments[1:])
    assert (outcome.code, said in " ".join(outcome.err.split())) == (2, True), outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("profile", "record"), ("report",)])
def test_what_records_does_not_have_it(command, coterie, store) -> None:
    assert "--drop-cold" not in coterie(*command, "--help").out
