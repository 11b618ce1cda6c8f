import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.cli.curve_tables import print_curve
from coterie.curves import CurvePoint
from curves.made import curve_of, point, smallest
from zoo.sizes import TEXT_IDS

SMALL = ("--context", "16", "--expert-memory", "40%", "--limit", "40")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a short path, which no table folds
    chosen = random.Random(0)
    Path("w[1].txt").write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(80)))
    return "w[1].txt"


def test_a_curve_is_shown_kept_and_drawn(coterie, model, text, tmp_path: Path) -> None:
    arguments = ("curve", model, "-t", f"some={text}", *SMALL, "-o", "curve.json")
    varied = ("--coverage", "3,100%", "--missing", "mask", "--experts-per-token", "1", "--scheme", "int4")
    outcome = coterie(*arguments, *varied, "--drop-cold", "0.5")
    assert outcome.code == 0, outcome.err
    found = json.loads(Path("curve.json").read_text())
    assert [point["setting"]["axis"] for point in found["points"]] == [
        "coverage", "coverage", "experts_per_token", "bits", "drop_cold", "drop_cold"
    ]  # fmt: skip
    lines = outcome.out.splitlines()
    for heading in ("Experts that are there:", "Experts per token:", "Bits per weight of experts:"):
        assert heading in lines
    for measured in found["points"]:
        assert f"{measured['total']['comparison']['kld']['value']:.5f} ± " in outcome.out
    assert "16 (100%)" in outcome.out
    assert any(line.split()[:1] == ["off"] for line in lines)
    assert "40 tokens of some" in outcome.out
    assert "Wrote curve.json." in outcome.err
    assert "0 of 6 points: 3 experts, by id, mask" in outcome.err
    # All is there: nothing is measured again.
    again = coterie(*arguments, *varied, "--drop-cold", "0.5", "--json", "--quiet")
    assert json.loads(again.out) == found
    assert again.err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "curve.points.jsonl", "w[1].txt"]
    assert coterie("plot", "curve", "curve.json", "-o", "curve.svg").code == 0
    assert "experts per token" in Path("curve.svg").read_text()
    wrong = coterie("plot", "curve", "curve.points.jsonl", "-o", "curve.svg")
    assert (wrong.code, "is no curve" in wrong.err) == (1, True)


def test_smallest_sets_are_shown(coterie, model, text) -> None:
    Path("code.txt").write_text(" ".join(f"w{3 + n % 40}" for n in range(600)))
    assert coterie("profile", "record", model, "--db", "p.db", "--text", "code=code.txt").code == 0
    search = ("--profile", "p.db", "--smallest", "0.1", "--missing", "drop")
    outcome = coterie("curve", model, "-t", f"code={text}", *SMALL, *search)
    assert outcome.code == 0, outcome.err
    row = next(line.split() for line in outcome.out.splitlines() if line.startswith("code "))
    assert row[:4] == ["code", "0.1", "ean", "drop"]
    assert float(row[6]) <= 0.1
    wrong = coterie("curve", model, "-t", f"cod={text}", *SMALL, *search)
    assert (wrong.code, "Did you mean 'code'" in wrong.err) == (2, True)


def test_mistakes_are_told_in_the_words_of_the_command_line(coterie, model, text) -> None:
    for options, message in [
        (("--coverage", "lots"), "'lots' is not a number or share"),
        (("--by", "trust"), "Valid: 'ean', 'frequency', 'id', 'random', 'reap'"),
        (("--by", "reap"), "Add --profile"),
        (("--smallest", "0.1"), "Add --profile"),
        (("--experts-per-token", "few"), "'few' is no whole number"),
        (("--drop-cold", "0.1,some"), "--drop-cold: 'some' is no number"),
        (("--missing", "fetch"), "Unknown missing policy 'fetch'"),
        (("--scheme", "int9"), "Unknown scheme 'int9'"),
        (("--text", text), "Two texts are called"),
        (("--coverage", "1"), "Ask for at least 2, or 25%"),
        (("--profile", "nowhere.db", "--by", "reap"), "nowhere.db"),
        (("-o", "no/x.json"), "There is no directory"),
    ]:
        outcome = coterie("curve", model, "-t", text, *SMALL, *options)
        assert outcome.code in (1, 2), options
        assert message in outcome.err, options
    assert coterie("curve", model).code == 2


def test_tables_say_what_a_point_is(coterie, capsys) -> None:
    kept = point(0.25, experts=4, axis="coverage", keep="4", by="reap", domain="code", missing="drop")
    read = point(0.0, axis="drop_cold", drop_cold=0.1, read=3 << 20)
    print_curve(curve_of(kept, read, sets=(smallest("a", 8), smallest("b", 12))))
    out, err = capsys.readouterr()
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert any(row.startswith("4 (25%) reap of code drop 1 B 0.25000 ± 0.25000 100.00 ± 10.00") for row in rows)
    assert any(row.startswith("0.1 3.00 MiB 100.0% 0.00000") for row in rows)
    assert "b 0.01 ean mask 12 (75%) 1.00000 ± 0.10000 50.0% 1 B" in rows
    assert "gate weight kept" not in out.split("Experts left out")[0]
    assert "All experts fit in memory" in err


def test_texts_that_a_store_was_calibrated_on_are_told_once(capsys) -> None:
    told = dataclasses.replace(point(0.1, axis="bits", store="small"), calibrated_on=(0.5,))
    read_again = CurvePoint.from_json(json.loads(json.dumps(told.to_json())))
    assert read_again == told
    print_curve(curve_of(told, dataclasses.replace(told, bits=4.0), point(0.2, axis="bits", scheme="int4")))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("small, all: the store was calibrated on about 50 % of this text") == 1
    assert said.count("calibrated on") == 1


def test_a_curve_is_drawn_without_torch() -> None:
    drawn = "from coterie.curves import curve_figure, read_curve; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", drawn], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_cluster_is_asked_for_with_all_that_it_needs(coterie, model, text, monkeypatch) -> None:
    from coterie.cluster import connection

    usual = ("curve", model, "-t", f"some={text}", "--ray", "local")
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    assert "Workers of a cluster need ray, which is not installed" in coterie(*usual, "--memory", "1GiB").err
    monkeypatch.setattr(connection, "find_spec", lambda name: object())
    outcome = coterie(*usual)
    assert (outcome.code, "Add --memory" in outcome.err) == (2, True)
    outcome = coterie(*usual, "--memory", "1GiB", "--drop-cold", "0.1")
    assert (outcome.code, "one process computes all, in order" in outcome.err) == (2, True)
