"""`--profile`, `--warm`, `--pin` and `--eviction trust` of commands that open a model."""

import json
from pathlib import Path

import numpy as np
import pytest

import coterie as coterie_package
from coterie.engine.source import open_source
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts

FAST = ("--expert-memory", "50%", "-n", "3", "--greedy")
PROMPT = "And it came to pass"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Of the bundled model's text part, made up: expert n of a layer is used the more, the larger n is."""
    source = open_source(Path(coterie_package.__file__).parent / "bundled", component="thinker")
    banks = tuple(BankShape(bank=bank, experts=count, top_k=1) for bank, count in source.num_experts.items())
    run = RunFacts(identity=source.identity, model="b", model_class="B", tool_version="0", banks=banks)
    path = tmp_path_factory.mktemp("profile") / "p.db"
    with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
        group = recording.group("text", "prose", "prompt")
        for shape in banks:
            ids = np.repeat(np.arange(shape.experts, dtype=np.uint16), np.arange(shape.experts))[:, None]
            recording.add(shape.bank, ids, np.ones(ids.shape, np.float32), None, group)
    return str(path)


def test_generate_says_the_same_with_and_without_a_profile(coterie, profile):
    plain = coterie("generate", "bundled", PROMPT, *FAST)
    options = ("--profile", profile, "--warm", "prose", "--pin", "10%", "--eviction", "trust")
    warmed = coterie("generate", "bundled", PROMPT, *FAST, *options)
    assert (warmed.code, warmed.out) == (plain.code, plain.out)
    stats = json.loads(coterie("generate", "bundled", PROMPT, *FAST, *options, "--json").out)["stats"]
    assert stats["warmed_for"] == "prose"
    assert stats["pinned"] > 0


def test_chat_takes_a_profile_too(coterie, profile, monkeypatch, tmp_path):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello there\n"))
    stats = tmp_path / "stats.json"
    outcome = coterie("chat", "bundled", "--profile", profile, *FAST, "--warm", "auto", "--stats", str(stats))
    assert outcome.code == 0
    assert json.loads(stats.read_text())["warmed"] >= 0


def test_nothing_is_read_early_where_that_is_off(coterie, profile):
    options = ("--profile", profile, "--warm", "off", "--eviction", "trust", "--json")
    stats = json.loads(coterie("generate", "bundled", PROMPT, *FAST, *options).out)["stats"]
    assert (stats["warmed"], stats["pinned"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--warm", "prose"), "--profile"),
        (("--pin", "10%"), "--profile"),
        (("--eviction", "trust"), "--profile"),
        (("--profile", "PROFILE", "--warm", "pros"), "prose"),
        (("--profile", "PROFILE", "--pin", "110%"), "pin"),
        (("--profile", "nowhere.db"), "no profile"),
    ],
)
def test_what_cannot_be_is_said(coterie, profile, options, message):
    options = [profile if option == "PROFILE" else option for option in options]
    outcome = coterie("generate", "bundled", PROMPT, *FAST, *options)
    assert outcome.code not in (0, 70)
    assert message in outcome.err
    assert "Traceback" not in outcome.err
