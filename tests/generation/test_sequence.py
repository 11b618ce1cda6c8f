"""A sequence has its own tokens, stream, choice and caches, and lets go of these when it ends."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from coterie.generation.sequence import Sequence
from coterie.generation.steps import Steps, generated
from coterie.hf.caches import caches_in

from .going import NEW, Failing, ids, sequence


@pytest.fixture
def model(zoo_checkpoint, open_model):
    return open_model(zoo_checkpoint("qwen3_moe"), expert_memory="50%")


def test_a_failure_leaves_room_for_the_next_though_it_is_remembered(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe"), max_context=20)
    remembered = []
    for _ in range(3):
        one = sequence(model, 1)
        failing = Failing(one.request, 2, ValueError("broken"))
        model.coterie.add_observer(failing)
        with pytest.raises(ValueError, match="broken") as raised:
            generated(one)
        remembered.append((one, raised.value))
        model.coterie.remove_observer(failing)
    assert len(generated(sequence(model, 1)).new_ids) == NEW
    assert all(len(one.new_ids) == 2 for one, _ in remembered)


def test_one_that_has_ended_holds_no_cache(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe"), max_context=20)
    done = [generated(sequence(model, seed)) for seed in range(4)]
    assert [len(one.new_ids) for one in done] == [NEW] * 4


def test_an_interrupted_one_is_gone_at_once(model) -> None:
    def interrupt(scores: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    def interrupted() -> weakref.ref[Sequence]:
        one = sequence(model, 1, chooser=interrupt)
        try:
            generated(one)
        except KeyboardInterrupt:
            return weakref.ref(one)
        raise AssertionError("not interrupted")

    gc.disable()
    try:
        assert interrupted()() is None
    finally:
        gc.enable()


def test_one_that_leaves_gives_back_its_room_though_it_is_remembered(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe"), max_context=20)
    steps, left = Steps(), []
    for seed in range(3):
        left.append(one := sequence(model, seed))
        steps.add(one)
        steps.step()
        steps.remove(one)
    assert len(generated(sequence(model, 1)).new_ids) == NEW
    assert [len(one.new_ids) for one in left] == [1, 1, 1]


class Collecting:
    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


def test_one_that_nobody_wants_any_more_is_gone_at_once(model) -> None:
    steps, one = Steps(), sequence(model, 1)
    steps.add(one)
    for _ in range(3):
        steps.step()
    cache = weakref.ref(caches_in(one._kwargs.values())[0])
    steps.remove(one)
    gc.disable()
    try:
        del one
        assert cache() is None
    finally:
        gc.enable()


def test_a_stream_gets_the_prompt_then_token_by_token(model) -> None:
    stream = Collecting()
    made = generated(sequence(model, 1, stream=stream))
    assert stream.given == [ids(1)[0].tolist(), *([one] for one in made.new_ids.tolist())]
    assert stream.ended == 1


def test_a_chooser_says_which_tokens_come(model) -> None:
    given = iter(torch.arange(3, 3 + NEW)[:, None])
    chosen: Callable[[torch.Tensor], torch.Tensor] = lambda scores: next(given)  # noqa: E731
    assert generated(sequence(model, 1, chooser=chosen)).new_ids.tolist() == list(range(3, 3 + NEW))
