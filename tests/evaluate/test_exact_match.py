"""Answers to questions about sounds, pictures and texts, right to the letter or not."""

import json
import shutil
from pathlib import Path

import pytest

from coterie.errors import InputError, MemoryBudgetError, UsageError
from coterie.evaluate import evaluate, share_estimate, tasks
from coterie.evaluate.questions import read_questions
from coterie.generation.processors import Processors
from zoo.tokenizer import add_tokenizer

DATA = Path(__file__).parents[1] / "data"
QUESTIONS = [
    {"audio": "dog.wav", "text": "dog"},
    {"image": "sandal.png", "text": " a photo of a sandal"},
    {"audio": "words/bird.flac", "text": "fish"},  # not so
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A file of questions, with what they are about beside it."""
    for one in QUESTIONS:
        name = one.get("audio") or one["image"]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(DATA / name, tmp_path / name)
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in QUESTIONS) + "\n\n")
    return path


def test_the_bundled_model_hears_words_and_sees_pictures(questions: Path, tmp_path: Path, monkeypatch) -> None:
    asked = {"exact_match": [questions], "answer_tokens": 12, "expert_memory": "100%"}
    found = evaluate("bundled", **asked)
    assert (found.texts, found.total, found.continuations, found.against) == ((), None, None, None)
    (match,) = found.exact_match
    assert [one.model for one in match.answers] == ["dog", "a photo of a sandal", "bird"]
    assert [one.expected for one in match.answers] == ["dog", "a photo of a sandal", "fish"]
    assert [one.right for one in match.answers] == [True, True, False]
    assert match.answers[0].asked == str(tmp_path / "dog.wav")
    assert (match.questions, match.right.value, match.full_right) == (3, 2 / 3, None)
    # Beside the full model: with experts left out, it is another; the full model's answers are kept.
    kept = {"against": "bundled", "reference": tmp_path / "kept", "experts_per_token": 1}
    (worse,) = evaluate("bundled", **asked, **kept).exact_match
    assert [one.full for one in worse.answers] == [one.model for one in match.answers]
    assert worse.full_right == match.right
    assert worse.only_model == sum(one.right for one in worse.answers[2:])
    assert worse.only_full == sum(not one.right for one in worse.answers[:2])
    monkeypatch.setattr(tasks.PromptPiece, "of_full", lambda *_: pytest.fail("it is there"))
    assert evaluate("bundled", **asked, **kept).exact_match == (worse,)


def test_questions_join_texts_under_one_budget(questions: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass in those days, that there went out a decree.")
    found = evaluate("bundled", [text], exact_match=[questions], answer_tokens=8, memory="8GiB", limit=8)
    assert found.total.tokens == 8
    assert found.exact_match[0].questions == 3
    with pytest.raises(MemoryBudgetError):
        evaluate("bundled", exact_match=[questions], memory="100MiB")


def test_a_prompt_is_a_turn_of_a_chat_where_there_is_a_template(readable: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(readable, tmp_path / "chat")
    add_tokenizer(directory, chat=True)
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "w5 w6", "text": "w7"}')
    (plain,) = read_questions(path, Processors(readable), new_tokens=4)
    (chat,) = read_questions(path, Processors(directory), new_tokens=4)
    assert plain.length == 2 + 4
    assert chat.length > plain.length
    assert (plain.asked, plain.expected, plain.line) == ("w5 w6", "w7", 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "Line 2 of .* is no question"),
        ("[1]", "it is no object of texts"),
        ('{"audio": "dog.wav", "text": 5}', "it is no object of texts"),
        ('{"audio": "dog.wav", "text": ""}', "it is no object of texts"),
        ('{"audio": "dog.wav"}', "no 'text', the right answer"),
        ('{"text": "dog"}', "it asks nothing"),
        ('{"file": "dog.wav", "text": "dog"}', "it has 'file', which is none of audio, image, prompt, text"),
        ('{"audio": "cat.wav", "text": "cat"}', r"Line 2 of .*cat\.wav"),
        ('{"image": "dog.wav", "text": "cat"}', r"Line 2 of .*dog\.wav"),
    ],
)
def test_what_is_no_question_is_told_with_its_line(line, message, questions: Path, processors) -> None:
    lines = questions.read_text().splitlines()
    questions.write_text(f"{lines[0]}\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_questions(questions, processors, new_tokens=8)


def test_a_model_that_does_not_hear_is_told_before_it_is_opened(readable: Path, questions: Path, monkeypatch) -> None:
    monkeypatch.setattr(tasks.Subject, "open", None)
    with pytest.raises(InputError, match="Line 1 of"):
        evaluate(readable, exact_match=[questions])
    with pytest.raises(UsageError, match="limit is about texts"):
        evaluate("bundled", exact_match=[questions], limit=9)
    with pytest.raises(UsageError, match="What is continued comes from texts"):
        evaluate("bundled", exact_match=[questions], continuations=9, against="bundled")
    with pytest.raises(UsageError, match="answer_tokens is about questions"):
        evaluate("bundled", [questions], answer_tokens=9)
    with pytest.raises(UsageError, match="answer_tokens must be at least 1"):
        evaluate("bundled", exact_match=[questions], answer_tokens=0)
    with pytest.raises(UsageError, match=r"more than the .* that the model was made for"):
        evaluate("bundled", exact_match=[questions], answer_tokens=1 << 20)


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I.
    for count, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = share_estimate(count, total)
        assert (found.value, found.low, found.high) == pytest.approx((count / total, low, high), abs=5e-5)
    assert share_estimate(9, 9).high == 1.0
    assert share_estimate(9, 9).low < 1.0
