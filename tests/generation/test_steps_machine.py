"""Sequences that come, go and share passes as they like: each is what it is alone, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from coterie.extraction import extract
from coterie.generation.steps import Steps
from coterie.native import library

from .beside import Beside

pytestmark = pytest.mark.skipif(library() is None, reason="the native library was not built")

LONGEST = 8
MOST = 6


class Machine(RuleBasedStateMachine):
    """What may happen to one :class:`Steps`.

    Args:
        model: The model.
        alone: Prompt → what it is alone, shared by all runs.
    """

    def __init__(self, model: Any, alone: dict[Any, Beside]) -> None:
        super().__init__()
        self.model, self.whole = model, alone
        self.steps = Steps()
        self.going: list[tuple[Any, Beside]] = []

    def alone(self, prompt: tuple[int, bool]) -> Beside:
        if prompt not in self.whole:
            seed, sampled = prompt
            self.whole[prompt] = Beside(self.model, seed, new=LONGEST, sampled=sampled).alone()
        return self.whole[prompt]

    @precondition(lambda self: len(self.going) < MOST)
    @rule(seed=st.integers(0, 5), sampled=st.booleans(), new=st.integers(1, LONGEST))
    def submit(self, seed: int, sampled: bool, new: int) -> None:
        self.alone((seed, sampled))
        one = Beside(self.model, seed, sampled=sampled, new=new)
        self.going.append(((seed, sampled), one))
        self.steps.add(one.sequence)

    @precondition(lambda self: self.going)
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.steps.step()

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.steps.remove(data.draw(st.sampled_from(self.going))[1].sequence)

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.steps.finish(data.draw(st.sampled_from(self.going))[1].sequence)

    @invariant()
    def each_is_as_alone(self) -> None:
        for prompt, one in self.going:
            assert one.sequence.error is None
            assert one.begins(self.alone(prompt))
        self.going = [(prompt, one) for prompt, one in self.going if not one.sequence.ended]

    def teardown(self) -> None:
        while self.steps.going:
            self.steps.step()
        self.each_is_as_alone()
        assert not self.going


def check(model: Any, examples: int, steps: int) -> None:
    alone: dict[Any, Beside] = {}
    run_state_machine_as_test(
        lambda: Machine(model, alone), settings=settings(max_examples=examples, stateful_step_count=steps)
    )


@pytest.mark.parametrize(
    ("name", "scheme", "options"),
    [
        ("qwen3_moe", "int4", {"expert_memory": "40%", "prefetch": "on"}),
        ("qwen3_omni_thinker", "int4", {"expert_memory": "60%"}),
        ("qwen3_moe", "native", {"expert_memory": "50%"}),
    ],
)
def test_each_is_as_alone(name, scheme, options, store, open_model) -> None:
    check(open_model(store(name, scheme=scheme), **options), examples=5, steps=12)


@pytest.fixture(scope="module")
def bundled_store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundled") / "store"
    extract("bundled", directory, scheme="int4", dense_scheme="int4")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"expert_memory": "30%", "prefetch": "on"}, {"expert_memory": "20%"}])
def test_each_is_as_alone_in_the_bundled_model(options, bundled_store, open_model) -> None:
    check(open_model(bundled_store, **options), examples=60, steps=40)
