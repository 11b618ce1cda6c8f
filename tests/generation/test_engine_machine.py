"""An engine to which anything may happen in any order: each answer is what it is alone, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from coterie.errors import EngineStoppedError, MemoryBudgetError, RequestCancelledError
from coterie.extraction import extract
from coterie.generation import grammar_matcher
from coterie.generation.completion import Completion
from coterie.generation.engine import Engine
from coterie.generation.opened import OpenModel
from coterie.generation.tickets import Done, Failed, Piece, Prepared, Ticket
from zoo import MATRIX, ZOO
from zoo.tokenizer import add_tokenizer

from .conftest import BUNDLED
from .gate import LONGEST_S, Gate, layers_of_shared_passes_told
from .prompts import BundledPrompts, Key, Prompts, TinyPrompts

pytestmark = pytest.mark.filterwarnings("ignore:max_context=600 makes room:UserWarning")

PIECE = 8
MOST = 7
"""Requests at once, those that wait included."""
MOST_PASSES = 500
"""All that these can come to need."""
SALTS = st.sampled_from(["", "", "anna"])
NUMBERS = st.integers(0, 209)
"""Say which of several, whatever there is. What is drawn must not depend on the engine, which goes by times as well."""
COMPARED = ("prompt_tokens", "token_ids", "text", "reasoning", "finish_reason", "logprobs", "prompt_logprobs")


@dataclass
class Subject:
    """A model to which it happens, and one that answers each request alone.

    Attributes:
        opened: The model.
        other: The same, with all experts in memory, for one request at a time.
        prompts: What they are asked.
        tight: Whether memory is so scarce that requests wait for it, and take it from the experts.
    """

    opened: OpenModel
    other: OpenModel
    prompts: Prompts
    tight: bool = False
    _known: dict[tuple[Key, int], Completion | Exception] = field(default_factory=dict)

    def alone(self, key: Key, wishes: int) -> Completion | Exception:
        """What a request comes to in an engine of its own, in which nothing else ever was."""
        if (key, wishes) not in self._known:
            with Engine(self.other, parallel=1, piece=PIECE, prefix_memory=0) as engine:
                ticket = engine.submit(self.prompts.asked(key, late=False), self.prompts.wishes[wishes])
                try:
                    self._known[key, wishes] = ticket.result(LONGEST_S)
                except Exception as error:
                    self._known[key, wishes] = error
        return self._known[key, wishes]


@dataclass
class Asked:
    """A request that was submitted."""

    key: Key
    wishes: int
    ticket: Ticket
    cancelled: bool = False
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.part == "text")

    @property
    def logprobs(self) -> tuple[Any, ...]:
        return tuple(one for piece in self.pieces for one in piece.logprobs)


class Machine(RuleBasedStateMachine):
    """What may happen to one engine.

    Args:
        subject: The model. What it is alone is shared by all runs.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject
        self.cache = subject.opened.runtime.cache
        self.capacity = self.cache.capacity
        self.engine = Engine(subject.opened, parallel=4, piece=PIECE)
        self.gate = Gate(self.engine)
        self.told = layers_of_shared_passes_told(self.gate.layer)
        self.told.__enter__()
        self.engine.start()
        self.going: list[Asked] = []
        self.answered: list[Key] = []

    @rule(key=NUMBERS, wishes=NUMBERS, late=st.booleans(), salt=SALTS, provenance=st.booleans())
    def submit(self, key: int, wishes: int, late: bool, salt: str, provenance: bool) -> None:
        keys = self.subject.prompts.keys
        self._submit(keys[key % len(keys)], wishes, late=late, salt=salt, provenance=provenance)

    @rule(key=NUMBERS, wishes=st.lists(NUMBERS, min_size=2, max_size=3))
    def submit_several_to_one_prompt(self, key: int, wishes: list[int]) -> None:
        keys = self.subject.prompts.keys
        for one in wishes:
            self._submit(keys[key % len(keys)], one)

    @rule(which=NUMBERS, wishes=NUMBERS, salt=SALTS)
    def go_on_with_an_answer(self, which: int, wishes: int, salt: str) -> None:
        if self.answered:
            self._submit(self.answered[which % len(self.answered)], wishes, salt=salt)

    def _submit(self, key: Key, wishes: int, *, late: bool = False, salt: str = "", provenance: bool = False) -> None:
        if len(self.going) == MOST:
            return
        prompts = self.subject.prompts
        wishes %= len(prompts.wishes)
        ticket = self.engine.submit(
            prompts.asked(key, late=late), prompts.wishes[wishes], salt=salt, provenance=provenance
        )
        first = ticket.event(LONGEST_S)
        assert isinstance(first, Prepared), first
        self.going.append(Asked(key, wishes, ticket))

    @rule(count=st.sampled_from([1, 2, 5, 12]))
    def pass_on(self, count: int) -> None:
        for _ in range(count):
            self.gate.pass_on()

    @rule(which=NUMBERS)
    def finish_one(self, which: int) -> None:
        for _ in range(MOST_PASSES):
            if not self.going or self.going[which % len(self.going)].ticket.phase == "over":
                return
            self.gate.pass_on()
        raise AssertionError("it does not end")

    @rule(layer=st.integers(0, 3), what=st.sampled_from(["submit", "cancel", "forget", "cancel all"]), which=NUMBERS)
    def within_a_pass(self, layer: int, what: str, which: int) -> None:
        self.gate.pass_into(layer)
        if what == "submit":
            self.submit(which, which // 7, late=which % 2 == 0, salt="", provenance=False)
        elif what == "cancel":
            self._cancel(which)
        elif what == "forget":
            self.engine.prefixes.clear()
        elif len(self.going) > 2:
            for number in range(len(self.going)):
                self._cancel(number)
        self.gate.pass_on()

    @rule(which=NUMBERS)
    def cancel(self, which: int) -> None:
        if len(self.going) > 2:
            self._cancel(which)

    def _cancel(self, which: int) -> None:
        if self.going:
            one = self.going[which % len(self.going)]
            one.ticket.cancel()
            one.cancelled = True

    @rule(share=st.sampled_from([0.8, 0.5, 0]))
    def forget_beginnings(self, share: float) -> None:
        self.engine.prefixes.shrink(int(share * self.engine.prefixes.nbytes))

    @rule(share=st.floats(0, 1))
    def resize(self, share: float) -> None:
        if not self.subject.tight:
            least, most = self.cache.minimum, self.cache.total_bytes
            self.cache.resize(least + int(share * (most - least)))

    @invariant()
    def each_is_as_alone(self) -> None:
        self.gate.settle()
        for one in tuple(self.going):
            while (event := one.ticket.event(0)) is not None:
                if isinstance(event, Piece):
                    one.pieces.append(event)
                elif isinstance(event, Done | Failed):
                    self.going.remove(one)
                    self._compare(one, event)

    @invariant()
    def memory_is_accounted_for(self) -> None:
        governor = self.engine.governor
        assert governor.total is None or governor.held <= governor.total
        assert self.engine.prefixes.nbytes <= max(0, self.engine.prefixes.limit)
        if self.subject.tight:
            assert self.cache.capacity == self.capacity - governor.lent
        if not self.engine.running:
            assert (governor.held, governor.promised) == (0, 0)

    def _compare(self, one: Asked, end: Done | Failed) -> None:
        alone = self.subject.alone(one.key, one.wishes)
        if isinstance(alone, Exception):
            assert isinstance(end, Failed)
            assert one.cancelled or (type(end.error), str(end.error)) == (type(alone), str(alone))
        elif isinstance(end, Done):
            ours = end.completion
            assert [getattr(ours, name) for name in COMPARED] == [getattr(alone, name) for name in COMPARED]
            assert one.text == alone.text
            assert one.logprobs == alone.logprobs[: len(one.logprobs)]
            self.answered += self.subject.prompts.going_on(one.key, alone)
        else:
            scarce = self.subject.tight and isinstance(end.error, MemoryBudgetError)
            stopped = self.engine.draining and isinstance(end.error, EngineStoppedError)
            assert scarce or stopped or (one.cancelled and isinstance(end.error, RequestCancelledError)), end.error
            assert alone.text.startswith(one.text)
            assert one.logprobs == alone.logprobs[: len(one.logprobs)]

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.gate.open()
            self.engine.close()
            self.told.__exit__(None, None, None)
            if not self.subject.tight:
                self.cache.resize(self.capacity)

    def _end(self) -> None:
        if len(self.going) == MOST - 1:
            # Some are closed in the middle.
            self.engine.cut()
        for _ in range(MOST_PASSES):
            if self.going:
                self.gate.pass_on()
                self.each_is_as_alone()
        assert not self.going
        self.gate.settle()
        self.memory_is_accounted_for()
        # What is kept of prompts is all that anybody has.
        self.engine.prefixes.clear()
        self.engine.governor.release(self)
        assert self.engine.prefixes.nbytes == 0


def check(subject: Subject, examples: int, steps: int, *, seed: int = 0) -> None:
    run_state_machine_as_test(
        hypothesis.seed(seed)(lambda: Machine(subject)),
        settings=settings(max_examples=examples, stateful_step_count=steps, derandomize=False, database=None),
    )


@pytest.fixture
def subject(zoo_checkpoint: Any, open_model: Any, tmp_path: Path) -> Iterator[Callable[..., Subject]]:
    """Makes a subject of a model of the zoo."""
    with pytest.MonkeyPatch.context() as patch:

        def make(name: str, scheme: str = "native", *, tight: bool = False, **options: Any) -> Subject:
            model = (MATRIX | ZOO)[name]
            if model.why_not:
                pytest.skip(model.why_not)
            directory = tmp_path / "checkpoint"
            shutil.copytree(zoo_checkpoint(name, torch.bfloat16), directory)
            add_tokenizer(directory, chat=False)
            if scheme != "native":
                extract(directory, tmp_path / "store", scheme=scheme, dense_scheme=scheme)
                directory = tmp_path / "store"
            if tight:
                options |= {"memory": "8GiB", "max_context": 600}
            opened, other = (OpenModel.of(open_model(directory, **one)) for one in (options, {}))
            if tight:
                runtime = opened.runtime
                plan = runtime.plan
                assert plan is not None
                budget = plan.rest + plan.margin + runtime.cache.capacity
                patch.setattr(runtime, "plan", replace(plan, budget=budget))
            return Subject(opened, other, TinyPrompts(opened.model.config, model.modalities), tight=tight)

        yield make


FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    # Whose answers share passes.
    ("qwen3_moe", "int4", {"expert_memory": "40%", "prefetch": "on"}),
    ("qwen3_moe", "int8", {"tight": True}),
    ("qwen3_omni_thinker", "int4", {"expert_memory": "50%"}),
    # Those of others take turns.
    ("qwen3_omni_thinker", "native", {"tight": True}),
    ("qwen3_vl_moe", "native", {"expert_memory": "50%"}),
    ("qwen3_moe", "native", {"expert_memory": "30%", "prefetch": "on"}),
    ("gpt_oss", "native", {"tight": True}),
    ("mixtral", "int4", {"expert_memory": "50%"}),
    ("deepseek_v3", "native", {"tight": True}),
    ("glm4_moe", "native", {"expert_memory": "50%"}),
    ("olmoe", "native", {"expert_memory": "50%"}),
    ("phimoe", "native", {"expert_memory": "50%"}),
    ("llama4_text", "native", {"expert_memory": "50%"}),
    ("granitemoe", "native", {"expert_memory": "50%"}),
    # Whose prompts are one pass each, as their layers keep states that go on with every token.
    ("qwen3_next", "native", {"expert_memory": "50%"}),
    ("jamba", "native", {"expert_memory": "50%"}),
    ("lfm2_moe", "native", {"tight": True}),
]
SHORT = [0, 3, 6]


@pytest.mark.parametrize(("name", "scheme", "options"), [FAMILIES[number] for number in SHORT])
def test_each_is_as_alone(name: str, scheme: str, options: dict[str, Any], subject: Callable[..., Subject]) -> None:
    check(subject(name, scheme, **options), examples=2, steps=25)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme", "options"), FAMILIES)
def test_each_is_as_alone_in_many_families(
    name: str, scheme: str, options: dict[str, Any], subject: Callable[..., Subject]
) -> None:
    check(subject(name, scheme, **options), examples=20, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["native", "int4"])
def test_each_is_as_alone_in_conversations_with_the_bundled_model(
    scheme: str, open_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is known to be harmless needs no process of its own.
    monkeypatch.setattr(grammar_matcher, "_tried", lambda described: "")
    path = BUNDLED
    if scheme != "native":
        path = tmp_path / "store"
        extract(BUNDLED, path, scheme=scheme, dense_scheme=scheme)
    opened, other = (OpenModel.of(open_model(path, expert_memory=share)) for share in ("30%", "100%"))
    check(Subject(opened, other, BundledPrompts()), examples=8, steps=30)
