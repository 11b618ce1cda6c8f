"""`coterie report`: pages on disk, JSON on standard output, and what cannot be reported."""

import json
from pathlib import Path

import pytest
import torch

from zoo import checkpoint

FAST = ("--expert-memory", "100%", "-q")
WORDS = " ".join(f"w{3 + (7 * n) % 90}" for n in range(240))


@pytest.fixture
def profile(coterie, model, tmp_path: Path) -> str:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(WORDS if name == "one" else WORDS[::-1].replace("w", " "))
    texts = [word for name in ("one", "two") for word in ("-t", f"{name}={tmp_path / name}.txt")]
    path = str(tmp_path / "p.db")
    assert coterie("profile", "record", model, "-o", path, *texts, "--segment-tokens", "16", *FAST).code == 0
    return path


def test_pages_are_written_and_say_what_json_says(coterie, model, profile, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    command = ("report", model, "--profile", profile, "-o", str(folder), "--text", str(tmp_path / "one.txt"), *FAST)
    outcome = coterie(*command)
    assert outcome.code == 0, outcome.err
    pictures = {"activation", "depth", "heads", "load", "salience"}
    found = {path.name for path in folder.iterdir()}
    assert found <= {"report.md", "report.html", "report.json", *(f"{name}.svg" for name in pictures)}
    assert found >= {"report.md", "report.html", "report.json", "heads.svg", "salience.svg"}
    written = json.loads((folder / "report.json").read_text())
    answers = {answer["key"]: answer for answer in written["answers"]}
    assert all(answer["answer"] in outcome.out for answer in answers.values())
    tokens = answers["salience"]["tables"][1]
    assert tokens["columns"][2:5] == ["token", "surprise", "novelty"]
    assert tokens["rows"][0][2].startswith("'w")
    assert "## Which attention heads matter, for comparison?" in (folder / "report.md").read_text()
    again = coterie(*command, "--json")
    assert json.loads(again.out) == written


def test_without_a_text_it_says_what_was_not_measured(coterie, model, profile, tmp_path: Path) -> None:
    outcome = coterie("report", model, "--profile", profile, "-o", str(tmp_path / "report"), "--json", *FAST)
    answers = {answer["key"]: answer["answer"] for answer in json.loads(outcome.out)["answers"]}
    assert answers["salience"].startswith("Not measured")
    assert answers["heads"].startswith("Not measured")


def test_what_cannot_be_reported(coterie, model, profile, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    (tmp_path / "short.txt").write_text("w3 w4 w5")
    (tmp_path / "file").touch()
    other = str(checkpoint("mixtral", torch.bfloat16, tmp_path))
    for options, message in (
        ((model, "--profile", profile, "-o", str(folder), "--text", str(tmp_path / "short.txt")), "a longer text"),
        ((model, "--profile", profile, "-o", str(tmp_path / "file" / "report")), "cannot be written"),
        ((model, "--profile", str(tmp_path / "none.db"), "-o", str(folder)), "no profile"),
        ((other, "--profile", profile, "-o", str(folder)), "The profile is about"),
        (("bundled", "--profile", profile, "-o", str(folder)), "whose experts are in 'text'"),
        ((model, "--profile", profile, "-o", str(folder), "--component", "thinker"), "text"),
    ):
        outcome = coterie("report", *options, *FAST)
        assert outcome.code not in (0, 70), options
        assert message in outcome.err, options
        assert "Traceback" not in outcome.err
        assert not folder.exists() or not list(folder.iterdir())
