import json
import random
from pathlib import Path

import pytest

from zoo.sizes import TEXT_IDS


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(1)
    for domain in ("code", "prose"):
        documents = (" ".join(f"w{draw.randint(3, TEXT_IDS)}" for _ in range(30)) for _ in range(12))
        Path(f"{domain}.txt").write_text("\n\n".join(documents))
    return ("--calibrate", "code=code.txt", "--calibrate", "prose=prose.txt", "--calibration-tokens", "300")


def test_a_store_is_made_measured_and_described(coterie, model, texts) -> None:
    usual = ("fit", model, "-o", "s", "--memory", "8GiB", "--bits", "3.2", "--limit", "60", "--no-speed", *texts)
    planned = coterie(*usual, "--dry-run")
    assert planned.code == 0, planned.err
    for stage in ("profile", "plan", "store", "verify", "uniform", "evaluate"):
        assert any(line.split()[:1] == [stage] for line in planned.out.splitlines()), stage
    assert "3.2 bits per weight were asked for" in planned.out
    assert not Path("s").exists()
    assert not Path("s.work").exists()
    outcome = coterie(*usual)
    assert outcome.code == 0, outcome.err
    assert "stage 1 of 6, profile" in outcome.err
    assert "stage 6 of 6, evaluate: the uniform store" in outcome.err
    facts = json.loads(Path("s/coterie-fit.json").read_text())
    for row in facts["evaluated"]["figures"]:
        shown = next(line for line in outcome.out.splitlines() if line.split()[:1] == [row["domain"]])
        assert f"{row['kld']['value']:.5f}" in shown
        assert f"{row['uniform']['value']:.5f}" in shown
    assert facts["commands"][-1] in outcome.out
    assert "its README.md is the card" in outcome.out
    # It is there, and the same command only says so.
    again = coterie(*usual, "--json", "--quiet")
    assert json.loads(again.out) == facts
    assert again.err == ""
    shown = json.loads(coterie(*usual[:3], "t", *usual[4:], "--dry-run", "--json").out)
    assert [one["name"] for one in shown["stages"]][-1] == "evaluate"
    assert shown["work"].endswith("t.work")
    # Each stage stands alone.
    assert coterie("verify", "s", "--against", model).code == 0


@pytest.mark.slow
def test_a_model_is_pruned_first_where_that_is_asked_for(coterie, model, texts) -> None:
    usual = ("fit", model, "-o", "s", "--memory", "8GiB", "--bits", "3.2", "--limit", "60", "--no-speed", *texts)
    pruned = (*usual, "--no-compare", "--keep", "75%", "--by", "ean")
    planned = coterie(*pruned, "--dry-run")
    assert planned.code == 0, planned.err
    assert [line.split()[0] for line in planned.out.splitlines() if line.startswith("p")] == [
        "profile",
        "prune",
        "profile-pruned",
        "plan",
    ]
    outcome = coterie(*pruned)
    assert outcome.code == 0, outcome.err
    assert "experts are gone: 75% were to stay, by what each adds in all (EAN)" in " ".join(outcome.out.split())
    row = json.loads(Path("s/coterie-fit.json").read_text())["evaluated"]["figures"][-1]
    shown = next(line for line in outcome.out.splitlines() if line.split()[:1] == ["all"])
    assert f"{row['pruned']['value']:.5f}" in shown


def test_mistakes_are_told_in_the_words_of_the_command_line(coterie, model, texts) -> None:
    usual = ("fit", model, "-o", "s", "--memory", "8GiB", *texts)
    for options, message, code in [
        (("--memory", "much"), "much", 2),
        (("--for", ","), "--for names no domain", 2),
        (("--for", "cod", "--bits", "3"), "Did you mean 'code'", 2),
        (("--bits", "0"), "is not a number of bits per weight", 2),
        (("--by", "ean"), "none are to be pruned", 2),
        (("--keep", "1"), "Keep at least 2", 2),
        (("--keep", "6", "--by", "random"), "random", 2),
        (("--text", "code.txt"), "--text code.txt names no domain", 2),
        (("--text", "code=no.txt"), "no.txt", 1),
        (("--profile", "no.db"), "no.db", 1),
        (("--exact-match", "no.jsonl"), "no.jsonl", 1),
        (("--work-memory", "64MiB", "--bits", "3"), "Give at least --work-memory", 1),
        (("--memory", "64MiB"), "will not run in 64.00 MiB, because", 1),
        ((), "fits in 8.00 GiB as it is", 2),
    ]:
        outcome = coterie(*usual, *options)
        assert (outcome.code, message in outcome.err) == (code, True), (options, outcome.err)
        assert not Path("s").exists()


def test_who_stops_it_is_told_that_it_goes_on(coterie, model, texts, monkeypatch) -> None:
    def stop(*arguments, **others):
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.fitting.running.make_allocated", stop)
    outcome = coterie("fit", model, "-o", "s", "--memory", "8GiB", "--bits", "3.2", "--no-speed", *texts)
    assert outcome.code == 130
    assert "the same command goes on from there" in outcome.err
    assert Path("s.work/profile.db").exists()


def test_a_cluster_needs_ray(coterie, model, texts, monkeypatch) -> None:
    from coterie.cluster import connection

    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    outcome = coterie("fit", model, "-o", "s", "--memory", "8GiB", *texts, "--ray", "local")
    assert outcome.code == 1
    assert "Workers of a cluster need ray, which is not installed. Install it: pip install" in outcome.err
    assert not Path("s.work").exists()
