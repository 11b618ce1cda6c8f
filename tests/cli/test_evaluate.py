import json
import random
from pathlib import Path

import pytest

from coterie.cli.evaluate import _left, _occasional_lines
from coterie.evaluate import EvaluationProgress
from coterie.extraction import extract
from zoo.sizes import TEXT_IDS


@pytest.fixture(scope="module")
def full(readable: Path) -> str:
    return str(readable)


@pytest.fixture(scope="module")
def partial(full: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("partial") / "store"
    extract(full, directory, experts="0-2")
    return str(directory)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a short path, which no table folds
    chosen = random.Random(0)
    path = Path("w[1].txt")
    path.write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(120)))
    return str(path)


SMALL = ("--context", "24", "--expert-memory", "100%")


def test_a_partial_store_is_compared_with_the_full_model(coterie, full, partial, text, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ("evaluate", partial, "--against", full, "--text", text, "--missing", "mask", *SMALL)
    outcome = coterie(*arguments, "--output", str(output))
    assert outcome.code == 0, outcome.err
    assert "\nw[1].txt " in outcome.out
    assert "same top, %" in outcome.out
    assert "model: store (store, 6 of 16 experts)" in outcome.out
    found = json.loads(output.read_text())
    row = found["texts"][0]
    assert row["comparison"]["kld"]["value"] > 0
    assert f"{row['comparison']['ratio']['value']:.4f}" in outcome.out
    top = row["comparison"]["same_top"]
    assert f"{100 * top['value']:.2f} ± {100 * (top['high'] - top['value']):.2f}" in outcome.out
    assert f"({row['perplexity']['low']:.3f} – {row['perplexity']['high']:.3f})" in outcome.out
    assert json.loads(coterie(*arguments, "--json").out) == found
    assert found["schema_version"] == 1


def test_a_model_against_itself_is_said_to_be_the_same(coterie, full, text) -> None:
    outcome = coterie("evaluate", full, "--against", full, "-t", text, "-t", text, *SMALL)
    assert outcome.code == 0
    assert "All logits are the same numbers as the full model's." in outcome.out
    assert "0.00000 ± 0.00000" in outcome.out
    assert "100.00 ± 0.00" in outcome.out
    assert "all " in outcome.out


def test_without_a_full_model_there_is_perplexity_alone(coterie, full, text) -> None:
    outcome = coterie("evaluate", full, "-t", text, "--limit", "20", *SMALL)
    assert outcome.code == 0
    assert "perplexity" in outcome.out
    assert "KLD" not in outcome.out
    assert "gives no confidence interval" in outcome.err


def test_mistakes_are_told_in_the_words_of_the_command_line(coterie, full, partial, text, tmp_path: Path) -> None:
    assert coterie("evaluate", full).code == 2
    outcome = coterie("evaluate", full, "-t", str(tmp_path / "nowhere.txt"))
    assert (outcome.code, "nowhere.txt cannot be read" in outcome.err) == (1, True)
    outcome = coterie("evaluate", partial, "-t", text, *SMALL)
    assert (outcome.code, "--missing mask" in outcome.err) == (1, True)
    outcome = coterie("evaluate", full, "-t", text, "--output", str(tmp_path / "no" / "x.json"))
    assert (outcome.code, "There is no directory" in outcome.err) == (2, True)
    outcome = coterie("evaluate", full, "-t", text, "--context", "24", "--stride", "25")
    assert (outcome.code, "stride=25 is not between" in outcome.err) == (2, True)


def test_ctrl_c_is_130_and_the_next_run_goes_on(coterie, full, text, tmp_path: Path, monkeypatch) -> None:
    from coterie.evaluate import tasks

    predict, calls = tasks.predict, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(tasks, "predict", interrupted)
    arguments = ("evaluate", full, "-t", text, *SMALL, "--json", "--resume", str(tmp_path / "scores.jsonl"))
    outcome = coterie(*arguments)
    assert (outcome.code, outcome.out) == (130, "")
    assert "Interrupted" in outcome.err
    outcome = coterie(*arguments)
    assert outcome.code == 0
    assert len(calls) == 3 + 3  # five windows, two of them done before
    assert json.loads(outcome.out) == json.loads(coterie("evaluate", full, "-t", text, *SMALL, "--json").out)


def test_progress_is_a_line_now_and_then_with_the_time_left(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tell = _occasional_lines()
    for seconds, done in ((5, 100), (6, 200), (4, 300)):
        now[0] += seconds
        tell(EvaluationProgress(done=done, total=1000, earlier=0, elapsed_s=now[0] - 100))
    assert capsys.readouterr().err.splitlines() == ["Evaluating: 200 of 1000 tokens, 0:00:44 left"]
    assert (_left(None), _left(3725.2)) == ("time left unknown", "1:02:05 left")


def test_continuations_are_shown_side_by_side(coterie, full, partial, text) -> None:
    arguments = ("evaluate", partial, "--against", full, "--text", text, "--missing", "mask", *SMALL)
    asked = ("--continuations", "2", "--continuation-tokens", "6", "--prompt-tokens", "8")
    outcome = coterie(*arguments, *asked)
    assert outcome.code == 0, outcome.err
    found = json.loads(coterie(*arguments, *asked, "--json").out)["continuations"]
    assert [
        row
        for row in outcome.out.splitlines()
        if row.startswith("w[1].txt") and row.endswith(f"{found['total']['bleu']:.2f}  {found['total']['chrf']:.2f}")
    ]
    assert found["bleu_signature"] in outcome.out
    for sample in found["samples"]:
        assert f"w[1].txt, token {sample['start']}: " in outcome.out
        assert sample["full"] in outcome.out
        assert sample["model"] in outcome.out
    assert "equal tokens before the first that differs" in outcome.out
    assert "the same to the last token" in coterie("evaluate", full, *arguments[2:6], *SMALL, *asked).out


def test_continuations_need_a_full_model_and_a_number(coterie, full, text) -> None:
    outcome = coterie("evaluate", full, "-t", text, "--continuations", "2", *SMALL)
    assert (outcome.code, "Add --against" in outcome.err) == (2, True)
    outcome = coterie("evaluate", full, "-t", text, "--against", full, "--prompt-tokens", "2", *SMALL)
    assert (outcome.code, "Add --continuations N" in outcome.err) == (2, True)


def test_answers_are_counted_and_the_telling_ones_shown(coterie, full, partial, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    asked = ("--exact-match", str(path), "--answer-tokens", "3", "--expert-memory", "100%")
    path.write_text("".join(json.dumps({"prompt": f"w{5 + n} w{9 + n}", "text": "w5"}) + "\n" for n in range(25)))
    outcome = coterie("evaluate", full, *asked)
    assert outcome.code == 0, outcome.err
    assert "asked.jsonl: not answered rightly" in outcome.out
    assert "and 5 more, which --json has" in outcome.out
    answers = json.loads(coterie("evaluate", full, *asked, "--json").out)["exact_match"][0]["answers"]
    # What the full model says is taken for right: then the other one is wrong wherever it says something else.
    lines = [{"prompt": one["asked"], "text": one["model"] or "w5"} for one in answers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("evaluate", partial, "--missing", "mask", "--against", full, *asked)
    found = json.loads(coterie(*arguments, "--json").out)
    assert found["total"] is None
    match = found["exact_match"][0]
    assert match["only_full"] == sum(one["full_right"] and not one["right"] for one in match["answers"]) > 0
    outcome = coterie(*arguments)
    assert "asked.jsonl: answered rightly by one of the two" in outcome.out
    assert f"{100 * match['right']['value']:.1f} ({100 * match['right']['low']:.1f} – " in outcome.out
    assert coterie("evaluate", full).code == 2


def test_a_text_that_the_store_was_calibrated_on_is_told(coterie, readable: Path, tmp_path: Path) -> None:
    met, other = tmp_path / "met.txt", tmp_path / "other.txt"
    for seed, path in enumerate((met, other)):
        chosen = random.Random(seed)
        path.write_text(" ".join(f"w{chosen.randint(3, 60)}" for _ in range(400)))
    store = str(tmp_path / "store")
    asked = ("--calibrate", f"prose={met}", "--calibration-tokens", "400", "--memory", "4GiB")
    assert coterie("quantize", str(readable), store, "--scheme", "int4", *asked).code == 0
    outcome = coterie("evaluate", store, "-t", str(met), "-t", str(other))
    assert outcome.code == 0
    said = " ".join(outcome.err.split())
    assert "met.txt: the store was calibrated on about 100 % of this text" in said
    assert "other.txt: the store" not in said
    shown = json.loads(coterie("evaluate", store, "-t", str(met), "-t", str(other), "--json").out)
    assert shown["calibrated_on"] == [1.0, 0.0]


def test_sounds_and_pictures_are_rows_beside_texts(coterie, tmp_path: Path) -> None:
    data = Path(__file__).parents[1] / "data"
    usual = ("evaluate", "bundled", "--speech", str(data / "dog.wav"), "--images", f"shoes={data / 'sandal.png'}")
    outcome = coterie(*usual)
    assert outcome.code == 2
    assert "--speech and --images are compared by what the full model says of them" in " ".join(outcome.err.split())
    asked = ("--against", "bundled", "--experts-per-token", "2", "--answer-tokens", "3", "--expert-memory", "100%")
    found = tmp_path / "found.json"
    outcome = coterie(*usual, *asked, "--output", str(found))
    assert outcome.code == 0, outcome.err
    for row in json.loads(found.read_text())["media"]:
        shown = [line for line in outcome.out.splitlines() if line.startswith(row["name"])]
        assert any(f"{row['comparison']['kld']['value']:.5f}" in line for line in shown)
    assert "speech, images of shoes: of the full model's answers, which both predicted" in outcome.out
