import json
import subprocess
import sys

import pytest

from analysis.conftest import planted_checkpoint, planted_db  # noqa: F401 - fixtures


def test_table_and_json_of_the_bundled_model(coterie, tmp_path):
    outcome = coterie("routers", "bundled", "--layer", "0-1", "--expert", "1:3", "-o", str(tmp_path / "r.json"))
    assert outcome.code == 0
    answer = outcome.out.splitlines()[0]
    rows = [line.split() for line in outcome.out.splitlines()]
    assert [row[1] for row in rows if row[:1] == ["thinker"]] == ["0", "1"]
    assert "Nearest to expert 3 of thinker layer 1:" in outcome.out
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["schema_version"], written["answer"]) == (1, answer)
    assert [layer["experts"] for layer in written["layers"]] == [32, 32]
    assert len(written["overlaps"]) == 1
    again = coterie("routers", "bundled", "--layer", "0-1", "--expert", "1:3", "--json")
    assert json.loads(again.out) == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clusters", "many"), "'many' is no number of clusters"),
        (("--clusters", "1"), "1 clusters of 32 experts are none"),
        (("--expert", "3"), "Write it as LAYER:ID"),
        (("--layer", "40"), "Layers that have one: 0, 1"),
        (("--component", "talkr"), "Unknown component 'talkr'"),
    ],
)
def test_wrong_options_are_explained(coterie, options, message):
    outcome = coterie("routers", "bundled", *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_profile_that_is_not_there(coterie, tmp_path):
    outcome = coterie("routers", "bundled", "--profile", str(tmp_path / "no.db"))
    assert outcome.code == 1
    assert "no.db" in outcome.err


def test_help_loads_no_optional_package():
    script = (
        "import sys; from coterie.cli.commands import COMMANDS, build\n"
        "[build(entry) for entry in COMMANDS if entry.name in ('routers', 'plot')]\n"
        "print(sorted({'torch', 'numpy', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_profile_adds_its_agreement(coterie, planted_checkpoint, planted_db):  # noqa: F811
    outcome = coterie("routers", str(planted_checkpoint), "--profile", str(planted_db), "--layer", "0-1")
    assert outcome.code == 0
    answer, _, heading, *rows = outcome.out.splitlines()
    assert answer.startswith("Router rows form clusters in 1 of 2 layers; they show the recorded modalities in 1 of 2")
    assert heading.split()[-8:] == ["modality", "ARI", "modality", "q", "domain", "ARI", "domain", "q"]
    random, planted = (row.split() for row in rows[:2])
    assert random[5].startswith("(")
    assert planted[5] == "3"
    assert planted[-2] == "1.00"
