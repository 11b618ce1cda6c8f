"""Answers that go on where they were cut: they become what they would have been."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import UnsupportedError, UsageError
from coterie.generation.conversation import Conversation
from coterie.generation.cut_answer import _Beyond
from coterie.generation.prefixes import Prefixes
from coterie.generation.sampling import Sampling
from coterie.hf.caches import is_cache
from coterie.passes.idle_caches import IDLE

QUESTION = "And it came to pass in those days"
MORE = "that there went out a decree"
HOW: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "drawn": {"seed": 7, "temperature": 1.5},
    "penalised": {"seed": 3, "temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
}


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="100%")
    yield opened
    opened.coterie.close()


def talk(model: Any, processors: Any, new: int | None, how: str = "greedy", **options: Any) -> Conversation:
    return Conversation(model, processors, sampling=Sampling(max_new_tokens=new, **HOW[how]), **options)


def stop_after(pieces: int) -> tuple[list[str], Any, Any]:
    told: list[str] = []
    return told, told.append, lambda: len(told) >= pieces


@pytest.mark.parametrize(
    ("how", "reuse"), [("penalised", True), ("greedy", "prefixes"), ("drawn", False), ("penalised", "lost")]
)
def test_an_answer_becomes_what_it_would_have_been(model, processors, how: str, reuse: Any) -> None:
    def options() -> dict[str, Any]:
        return {"reuse": Prefixes(1 << 24, piece=4) if reuse == "prefixes" else bool(reuse)}

    whole = talk(model, processors, 9, how, **options())
    expected = whole.ask(QUESTION)
    cut = talk(model, processors, 3, how, **options())
    first = cut.ask(QUESTION)
    assert (first.finish_reason, first.token_ids) == ("length", expected.token_ids[:3])
    told: list[str] = []
    for more in (2, 4):
        if reuse == "lost":
            IDLE.let_one_go(lambda _: True)
        cut.sampling = Sampling(max_new_tokens=more, temperature=0.1)
        found = cut.go_on(on_text=told.append)
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
    assert found.prompt_tokens == expected.prompt_tokens
    assert first.text + "".join(told) == expected.text
    assert cut.messages == whole.messages
    if reuse is True:
        cut.sampling = whole.sampling
        assert cut.ask(MORE).token_ids == whole.ask(MORE).token_ids


def test_what_is_kept_is_not_computed_again(model, processors) -> None:
    cut = talk(model, processors, 4)
    cut.ask(QUESTION)
    before = model.coterie.stats()
    cut.go_on()
    after = model.coterie.stats()
    assert after.prefill_tokens == before.prefill_tokens
    assert after.decode_tokens["thinker"] - before.decode_tokens["thinker"] == 4


@pytest.mark.parametrize("reuse", [True, False])
def test_an_answer_that_was_stopped_goes_on(model, processors, reuse: bool) -> None:
    expected = talk(model, processors, 12, reuse=reuse).ask(QUESTION)
    cut = talk(model, processors, 12, reuse=reuse)
    told, on_text, should_stop = stop_after(3)
    first = cut.ask(QUESTION, on_text=on_text, should_stop=should_stop)
    assert first.finish_reason == "interrupted"
    again, on_text, should_stop = stop_after(2)
    second = cut.go_on(on_text=on_text, should_stop=should_stop)
    assert second.finish_reason == "interrupted"
    assert len(first.token_ids) < len(second.token_ids)
    cut.sampling = Sampling(max_new_tokens=12 - len(second.token_ids), greedy=True)
    last: list[str] = []
    found = cut.go_on(on_text=last.append)
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
    assert "".join([*told, *again, *last]) == expected.text


def test_one_that_is_stopped_on_its_way_back_is_as_it_was(model, processors) -> None:
    cut = talk(model, processors, 6, reuse=False)
    first = cut.ask(QUESTION)
    assert cut.go_on(should_stop=lambda: True) == first
    assert cut.go_on().token_ids[:6] == first.token_ids


def test_pictures_and_sounds_stay_where_they_are(model, processors, data) -> None:
    media = {"images": [data / "sandal.png"], "audios": [data / "dog.wav"]}

    def begun(new: int, *, reuse: bool = True) -> Conversation:
        sampling = Sampling(max_new_tokens=new, greedy=True, ignore_eos=True)
        return Conversation(model, processors, sampling=sampling, reuse=reuse)

    expected = begun(8).ask(QUESTION, **media)
    for reuse in (True, False):
        cut = begun(3, reuse=reuse)
        assert cut.ask(QUESTION, **media).finish_reason == "length"
        cut.sampling = Sampling(max_new_tokens=5)
        assert cut.go_on().token_ids == expected.token_ids


def test_only_the_last_answer_goes_on_and_only_if_it_was_cut(model, processors, tmp_path) -> None:
    cut = talk(model, processors, 3)
    with pytest.raises(UsageError, match="no answer that could go on"):
        cut.go_on()
    cut.ask(QUESTION)
    cut.save(tmp_path / "talk.json")
    cut.undo()
    with pytest.raises(UsageError, match="no answer that could go on"):
        cut.go_on()
    cut.restore(tmp_path / "talk.json")
    with pytest.raises(UsageError, match="no answer that could go on"):
        cut.go_on()
    cut.sampling = Sampling(max_new_tokens=30, greedy=True, stop=(",",))
    assert cut.ask(MORE).finish_reason == "stop"
    with pytest.raises(UsageError, match="come to its end"):
        cut.go_on()


def test_where_the_context_is_full_nothing_goes_on(bundled, processors) -> None:
    opened = load(bundled, expert_memory="100%", max_context=16)
    try:
        cut = talk(opened, processors, 4)
        cut.ask(QUESTION)
        cut.sampling = Sampling(max_new_tokens=30)
        assert cut.go_on().finish_reason == "context"
        with pytest.raises(UsageError, match="come to its end"):
            cut.go_on()
        cut.reset()
        room = 16 - cut.ask(QUESTION).prompt_tokens
        cut.undo()
        cut.sampling = Sampling(max_new_tokens=room + 1, greedy=True)
        assert cut.ask(QUESTION).finish_reason == "length"
        with pytest.raises(UsageError, match="context is full"):
            cut.go_on()
    finally:
        opened.coterie.close()


def test_what_a_search_found_does_not_go_on(model, processors) -> None:
    cut = talk(model, processors, 3)
    cut.sampling = Sampling(max_new_tokens=3, greedy=True, logprobs=1)
    cut.ask(QUESTION)
    with pytest.raises(UnsupportedError):
        cut.go_on()


def test_an_answer_that_could_go_on_keeps_no_picture_and_no_cache(model, processors, data) -> None:
    cut = talk(model, processors, 1)
    cut.ask(QUESTION, images=[data / "sandal.png"])
    assert cut._last is not None
    completing = cut._last.answer._completing
    assert set(completing._inputs) == {"input_ids"}
    assert completing.made is not None
    left = [*completing.made._kwargs.values(), *completing.made._prepared.kwargs.values()]
    assert left or not completing.made.may_go_on
    assert not [one for one in left if is_cache(one) or (isinstance(one, torch.Tensor) and one.is_floating_point())]


@pytest.mark.parametrize(
    ("told", "again", "pieces", "expected"),
    [
        ("abc", "abc", ["d"], ["d"]),
        ("abc ST", "abc ", ["STAR", "S"], ["AR", "S"]),
        ("abc ST", "abc ", ["S", "TAR"], ["AR"]),
        ("abc\N{REPLACEMENT CHARACTER}", "abc", ["é"], ["é"]),
        ("all of it", "", ["all of it, and more"], [", and more"]),
        ("abc", "a", ["xyz"], ["xyz"]),
    ],
)
def test_what_was_told_is_not_told_again(told: str, again: str, pieces: list[str], expected: list[str]) -> None:
    found: list[str] = []
    catching = [True]
    beyond = _Beyond(told, found.append, lambda: catching[0])
    beyond.take(again)
    catching[0] = False
    for piece in pieces:
        beyond.take(piece)
    assert found == expected
