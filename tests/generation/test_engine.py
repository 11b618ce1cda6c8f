"""Several requests at once get what each gets alone, whoever joins, leaves or fails beside them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coterie
from coterie.errors import (
    ContextLengthError,
    EngineStoppedError,
    InputError,
    QueueFullError,
    QueueTimeoutError,
    ReadError,
    RequestCancelledError,
    UsageError,
)
from coterie.generation import engine as engine_module
from coterie.generation.completion import Completion, complete
from coterie.generation.engine import Engine
from coterie.generation.inputs import build_inputs, token_inputs
from coterie.generation.jobs import Job
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.generation.tickets import Prepared, Progress, Ticket
from coterie.integration.quantised import TokenExperts
from coterie.native import library
from coterie.passes.bank import StreamedBank
from coterie.passes.current import Pass, current
from coterie.spec import Event, ExpertsSelected

from .conftest import BUNDLED, OLD

PROMPT = "And it came to pass in those days, that there went out a decree"
PIECE = 8


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenModel]:
    model = coterie.load(BUNDLED, expert_memory="50%")
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.fixture
def engine(opened: OpenModel) -> Iterator[Engine]:
    with Engine(opened, piece=PIECE) as made:
        yield made


def alone(opened: OpenModel, prompt: str | list[int], wishes: Sampling, piece: int = PIECE) -> Completion:
    make = build_inputs if isinstance(prompt, str) else token_inputs
    inputs = make(opened.processors, prompt)  # type: ignore[operator]
    return complete(opened.model, opened.processors.tokenizer, inputs, wishes, piece=piece)


def same(ours: Completion, theirs: Completion) -> bool:
    names = ("prompt_tokens", "token_ids", "text", "finish_reason", "reasoning", "tool_calls")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Holding:
    """An observer that holds the model in a layer of a prompt's or an answer's pass, or fails there."""

    def __init__(self, tokens: Callable[[int], bool], error: BaseException | None = None) -> None:
        self.tokens, self.error = tokens, error
        self.reached, self.released = threading.Event(), threading.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, ExpertsSelected) and not self.reached.is_set() and self.tokens(current().tokens):
            self.reached.set()
            if self.error is not None:
                raise self.error
            assert self.released.wait(60)


@pytest.fixture
def hold(opened: OpenModel) -> Iterator[Callable[..., Holding]]:
    made: list[Holding] = []

    def holding(tokens: Callable[[int], bool] = lambda _: True, error: BaseException | None = None) -> Holding:
        made.append(Holding(tokens, error))
        opened.runtime.add_observer(made[-1])
        return made[-1]

    yield holding
    for one in made:
        one.released.set()
        opened.runtime.remove_observer(one)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    """One whose answers get their tokens in passes that they share."""
    if library() is None:
        pytest.skip("the native library was not built")
    store = tmp_path_factory.mktemp("engine") / "store"
    coterie.extract(BUNDLED, store, scheme="int4", dense_scheme="int4")
    model = coterie.load(store, expert_memory="30%")
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 40))])
@pytest.mark.parametrize("kind", ["opened", "sharing"])
def test_whoever_joins_and_leaves_each_gets_its_own_answer(
    kind: str, seed: int, request: pytest.FixtureRequest
) -> None:
    opened: OpenModel = request.getfixturevalue(kind)
    with Engine(opened, piece=PIECE) as engine:
        join_and_leave(engine, opened, seed)


def join_and_leave(engine: Engine, opened: OpenModel, seed: int) -> None:
    draw = random.Random(seed)
    asked: list[tuple[str, Sampling]] = [
        (
            PROMPT[: draw.randrange(5, len(PROMPT))] * draw.randrange(1, 3),
            Sampling(
                max_new_tokens=draw.randrange(1, 12),
                temperature=draw.choice([0, 0, 0.8, 1.5]),
                seed=draw.randrange(1000),
                stop=draw.choice([(), ("e",), (" the",)]),
                repetition_penalty=draw.choice([None, 1.2]),
            ),
        )
        for _ in range(8)
    ]
    expected = [alone(opened, *one) for one in asked]
    tickets: list[Ticket] = []
    leaving: set[int] = set()
    for number, one in enumerate(asked):
        tickets.append(engine.submit(*one))
        time.sleep(draw.random() * 0.01)
        if draw.random() < 0.4:
            leaver = draw.randrange(number + 1)
            tickets[leaver].cancel()
            leaving.add(leaver)
    for number, (ticket, theirs) in enumerate(zip(tickets, expected, strict=True)):
        try:
            assert same(ticket.result(60), theirs)
        except RequestCancelledError:
            assert number in leaving
    until(lambda: engine.running == engine.waiting == 0)
    assert engine.governor.held == engine.governor.promised == 0


def test_what_can_be_asked(engine: Engine, opened: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=4, temperature=0)
    inputs = build_inputs(opened.processors, PROMPT)
    expected = alone(opened, PROMPT, wishes)
    for asked in (PROMPT, inputs["input_ids"][0].tolist(), inputs, dict(inputs)):
        assert same(engine.submit(asked, wishes).result(30), expected)
    message = {"role": "user", "content": PROMPT}
    chatted = complete(
        opened.model, opened.processors.tokenizer, coterie.chat_inputs(opened.processors, [message]), wishes,
        piece=PIECE,
    )  # fmt: skip
    assert engine.submit([message], wishes).result(30).token_ids == chatted.token_ids
    with pytest.raises(InputError):
        engine.submit([], wishes).result(30)


def test_an_answer_comes_piece_by_piece(engine: Engine, opened: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=12, temperature=0)
    expected = alone(opened, PROMPT, wishes).text
    ticket = engine.submit(PROMPT, wishes)
    pieces = [piece.text for piece in ticket]
    assert len(pieces) > 1
    assert "".join(pieces) == expected == ticket.result().text

    async def ask(seconds: float) -> tuple[str, str]:
        await asyncio.sleep(seconds)
        one = engine.submit(PROMPT, wishes)
        told = [piece.text async for piece in one]
        return "".join(told), (await one).text

    async def several() -> list[tuple[str, str]]:
        return await asyncio.gather(*(ask(0.002 * number) for number in range(3)))

    assert asyncio.run(several()) == [(expected, expected)] * 3


def test_progress_is_told_piece_by_piece_of_the_prompt(engine: Engine) -> None:
    ticket = engine.submit(PROMPT * 2, Sampling(max_new_tokens=2, temperature=0))
    ticket.result(30)
    told: list[Any] = []
    while (event := ticket.event(0)) is not None:
        told.append(event)
    tokens = ticket.prompt_tokens
    assert tokens is not None
    assert tokens > 2 * PIECE
    assert told[0] == Prepared(tokens)
    progress = [event for event in told if isinstance(event, Progress)]
    assert progress == [*(Progress(read, tokens) for read in range(PIECE, tokens, PIECE)), Progress(tokens, tokens)]
    assert ticket.phase == "over"


def test_a_search_runs_alone_and_the_others_before_and_after(
    engine: Engine, opened: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Sampling(max_new_tokens=5, greedy=True)
    plain = alone(opened, PROMPT, wishes)
    first = engine.submit(PROMPT, wishes)
    first.result(30)
    monkeypatch.setattr(opened.model.generation_config, "num_beams", 3)
    searched = alone(opened, PROMPT, wishes)
    running = [engine.submit(PROMPT, wishes) for _ in range(3)]
    for ticket in running:
        assert same(ticket.result(30), searched)
    monkeypatch.undo()
    assert same(engine.submit(PROMPT, wishes).result(30), plain)


class Layers:
    """Holds the model between two layers, and counts those that it computes afterwards.

    Args:
        monkeypatch: Puts it where each layer comes to its experts.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed: list[int] = []
        self.number = -1
        self._wanted: Callable[[Pass], bool] = lambda _: False
        self._reached, self._released = threading.Event(), threading.Event()
        route, compute = StreamedBank.route, TokenExperts.compute

        def routed(bank: StreamedBank, now: Pass, *args: Any) -> Any:
            self._enter(now)
            result = route(bank, now, *args)
            self.computed.append(bank.bank.key.layer)
            return result

        def computed(experts: TokenExperts, state: Any) -> Any:
            now = experts._streamed.now()
            self._enter(now)
            result = compute(experts, state)
            if result is not None:
                self.computed.append(experts._streamed.bank.key.layer)
            return result

        monkeypatch.setattr(StreamedBank, "route", routed)
        monkeypatch.setattr(TokenExperts, "compute", computed)

    def hold(self, wanted: Callable[[Pass], bool]) -> None:
        """Waits until a pass of a kind is before its second layer or a later one, and keeps it there."""
        self._reached.clear()
        self._released.clear()
        self.number = -1
        self._wanted = wanted
        assert self._reached.wait(30)

    def release(self, until: Callable[[Pass], bool] | None = None) -> None:
        """Lets it go on; to where such a pass comes to the next layer, if one is named."""
        self.computed.clear()
        self._reached.clear()
        if until is not None:
            self._wanted = until
        self._released.set()
        if until is not None:
            assert self._reached.wait(30)

    def _enter(self, now: Pass) -> None:
        wanted, second = self._wanted(now), now.number == self.number
        self.number = now.number
        if wanted and second:
            self._wanted = lambda _: False
            self._reached.set()
            assert self._released.wait(30)
            self._released.clear()


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layers]:
    made = Layers(monkeypatch)
    yield made
    made._released.set()


LONG = Sampling(max_new_tokens=1000, temperature=0)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("kind", ["opened", "sharing"])
def test_who_is_given_up_ends_before_the_next_layer(
    kind: str, phase: str, layers: Layers, request: pytest.FixtureRequest
) -> None:
    opened: OpenModel = request.getfixturevalue(kind)
    wishes = Sampling(max_new_tokens=6, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    with Engine(opened, piece=PIECE) as engine:
        leaver = engine.submit(PROMPT * 2, LONG)
        layers.hold(lambda now: now.phase == phase)
        leaver.cancel()
        with pytest.raises(RequestCancelledError):
            leaver.result(1)
        layers.release()
        until(lambda: engine.running == 0)
        assert (layers.computed, engine.governor.held, engine.governor.promised) == ([], 0, 0)
        assert engine.trouble is None
        assert same(engine.submit(PROMPT, wishes).result(30), expected)


@pytest.mark.skipif(OLD, reason="positions are made within the pass there, and answers take turns")
def test_who_is_given_up_within_a_shared_pass_is_gone_before_that_ends(sharing: OpenModel, layers: Layers) -> None:
    wishes = Sampling(max_new_tokens=60, temperature=0)
    expected = alone(sharing, PROMPT, wishes)
    with Engine(sharing, piece=PIECE) as engine:
        beside = [engine.submit(PROMPT, wishes) for _ in range(2)]
        leaver = engine.submit(PROMPT, LONG)
        layers.hold(lambda now: now.batch == 3)
        before, number = engine.governor.promised, layers.number
        leaver.cancel()
        layers.release(lambda now: now.number == number)
        assert len(layers.computed) == 1
        assert engine.running == 2
        assert 0 < engine.governor.promised < before
        layers.release()
        assert all(same(ticket.result(30), expected) for ticket in beside)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_who_is_given_up_while_others_are_computed_is_gone_at_once(
    engine: Engine, opened: OpenModel, layers: Layers, phase: str
) -> None:
    wishes = Sampling(max_new_tokens=4, temperature=0)
    expected = alone(opened, PROMPT * 2, wishes)
    leaver = engine.submit(PROMPT * (4 if phase == "prefill" else 1), LONG)
    until(lambda: leaver.phase == "decode" or (phase == "prefill" and leaver.read_tokens > 0))
    beside = engine.submit(PROMPT * 2, wishes)
    until(lambda: beside.read_tokens > 0)
    layers.hold(lambda now: now.rows[0].request is of(engine, beside).request)
    leaver.cancel()
    # Nothing of it is computed now, and nobody has gone on.
    assert engine.running == 1
    assert engine.governor.promised == engine.governor._promises[of(engine, beside)]
    layers.release()
    assert same(beside.result(30), expected)
    until(lambda: engine.running == 0)
    assert engine.governor.held == engine.governor.lent == 0


def of(engine: Engine, ticket: Ticket) -> Job:
    return next(job for job in engine._thread.running if job.ticket is ticket)


def test_a_search_that_is_given_up_ends_before_the_next_layer(
    engine: Engine, opened: OpenModel, layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened.model.generation_config, "num_beams", 3)
    leaver = engine.submit(PROMPT, Sampling(max_new_tokens=1000, greedy=True))
    layers.hold(lambda now: now.decode)
    leaver.cancel()
    layers.release()
    until(lambda: engine.running == 0)
    assert (layers.computed, engine.governor.held) == ([], 0)


def test_a_completion_is_stopped_before_the_next_layer(opened: OpenModel) -> None:
    asked: list[str] = []

    def stop() -> bool:
        asked.append(current().phase)
        return asked.count("decode") == 4  # in the middle of a step

    inputs = build_inputs(opened.processors, PROMPT)
    made = complete(opened.model, opened.processors.tokenizer, inputs, LONG, should_stop=stop)
    per_step = len(opened.runtime.banks)
    assert (made.finish_reason, len(made.token_ids)) == ("interrupted", 1)
    assert (per_step > 4, len(asked)) == (True, per_step + 4)


def test_giving_up_while_waiting(opened: OpenModel, hold: Callable[..., Holding]) -> None:
    held = hold()
    with Engine(opened, parallel=1) as engine:
        running = engine.submit(PROMPT, Sampling(max_new_tokens=2))
        assert held.reached.wait(30)
        waiting = engine.submit(PROMPT, Sampling(max_new_tokens=2))
        with waiting:
            until(lambda: engine.waiting == 1)
        assert engine.waiting == 0
        with pytest.raises(RequestCancelledError):
            waiting.result(1)
        held.released.set()
        assert running.result(30).token_ids


@pytest.mark.parametrize("error", [ReadError("Expert 3 of layer 1 cannot be read."), SystemError("bad"), SystemExit(3)])
def test_what_is_raised_over_one_is_its_own(
    engine: Engine, opened: OpenModel, hold: Callable[..., Holding], error: BaseException
) -> None:
    wishes = Sampling(max_new_tokens=8, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    hold(lambda tokens: tokens == PIECE - 1, error)
    failing = engine.submit([5] * (PIECE - 1), wishes)
    others = [engine.submit(PROMPT, wishes) for _ in range(2)]
    with pytest.raises(type(error)):
        failing.result(30)
    assert all(same(other.result(30), expected) for other in others)
    assert engine.trouble is None


def test_a_prompt_that_is_none_is_its_own_fault(engine: Engine, opened: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=4, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    beside = engine.submit(PROMPT, wishes)

    def panics() -> Any:
        raise SystemExit("as Rust libraries do")

    hostile: list[tuple[Any, type[BaseException]]] = [
        ([10**6], InputError), ("", InputError), (panics, SystemExit), ([1] * 10**5, ContextLengthError),
    ]  # fmt: skip
    for asked, error in hostile:
        with pytest.raises(error):
            engine.submit(asked, wishes).result(30)
    assert same(beside.result(30), expected)


def test_beyond_the_queue_and_its_time(opened: OpenModel, hold: Callable[..., Holding]) -> None:
    held = hold()
    with Engine(opened, parallel=1, most_waiting=1, longest_wait_s=0.3) as engine:
        running = engine.submit(PROMPT, Sampling(max_new_tokens=2))
        assert held.reached.wait(30)
        waiting = engine.submit(PROMPT)
        with pytest.raises(QueueFullError) as raised:
            engine.submit(PROMPT)
        assert raised.value.retry_after >= 1
        with pytest.raises(QueueTimeoutError):
            waiting.result(30)
        held.released.set()
        assert running.result(30).token_ids
    with pytest.raises(EngineStoppedError):
        engine.submit(PROMPT)


def test_leaving_it_ends_all(opened: OpenModel, hold: Callable[..., Holding]) -> None:
    held = hold()
    with Engine(opened, parallel=1) as engine:
        tickets = [engine.submit(PROMPT) for _ in range(2)]
        assert held.reached.wait(30)
        threading.Timer(0.05, held.released.set).start()
    for ticket in tickets:
        with pytest.raises(EngineStoppedError):
            ticket.result(1)
    engine.close()


def test_when_its_thread_ends_all_are_told(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(opened) as engine:

        def broken(*_: object) -> None:
            raise SystemError("its own code fails")

        monkeypatch.setattr(engine_module.Job, "note_progress", broken)
        with pytest.raises(EngineStoppedError):
            engine.submit(PROMPT).result(30)
        until(lambda: engine.trouble == "the model's thread has ended")
        with pytest.raises(EngineStoppedError):
            engine.submit(PROMPT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_of_the_queue_ends_it_is_seen(opened: OpenModel, hold: Callable[..., Holding]) -> None:
    def broken() -> float | None:
        raise SystemError("its own code fails")

    wishes = Sampling(max_new_tokens=3, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    held = hold()
    with Engine(opened, parallel=1) as engine:
        running = engine.submit(PROMPT, wishes)
        assert held.reached.wait(30)
        engine._thread.waiting._expire = broken  # type: ignore[method-assign]
        waiting = engine.submit(PROMPT, wishes)
        until(lambda: engine.trouble == "the queue's thread has ended")
        with pytest.raises(EngineStoppedError):
            engine.submit(PROMPT)
        held.released.set()
        assert all(same(ticket.result(30), expected) for ticket in (running, waiting))


def test_a_watcher_that_fails_is_no_request_s_fault(opened: OpenModel, hold: Callable[..., Holding]) -> None:
    class Broken:
        def failed(self, ticket: Ticket, error: BaseException) -> None:
            raise SystemError("it cannot be told")

        def finished(self, ticket: Ticket, completion: Completion) -> None:
            raise SystemError("it cannot be told")

        def cancelled(self, phase: str) -> None:
            raise SystemError("it cannot be told")

    wishes = Sampling(max_new_tokens=3, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    held = hold()
    with Engine(opened, parallel=1, longest_wait_s=0.5, watcher=Broken()) as engine:
        running = engine.submit(PROMPT, wishes)
        assert held.reached.wait(30)
        leaver = engine.submit(PROMPT, wishes)
        leaver.cancel()
        late = engine.submit(PROMPT, wishes)
        for ticket, error in ((leaver, RequestCancelledError), (late, QueueTimeoutError)):
            with pytest.raises(error):
                ticket.result(30)
        held.released.set()
        assert same(running.result(30), expected)
        with pytest.raises(InputError):
            engine.submit([10**6]).result(30)
        assert engine.trouble is None
        assert same(engine.submit(PROMPT, wishes).result(30), expected)


def test_whoever_comes_while_all_is_ended_is_told(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at whether anything is served and the queue, everything may be ended."""
    with Engine(opened) as engine:
        init = engine_module.Job.__init__

        def ended(*arguments: Any, **options: Any) -> None:
            init(*arguments, **options)
            engine.cut()

        monkeypatch.setattr(engine_module.Job, "__init__", ended)
        with pytest.raises(EngineStoppedError):
            engine.submit(PROMPT).result(30)
        assert engine.waiting == 0


def test_who_cannot_be_made_ready_does_not_wait(engine: Engine, opened: OpenModel) -> None:
    def none_left(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._preparers._pool, "submit", none_left)
        with pytest.raises(RuntimeError):
            engine.submit(PROMPT)
    assert engine.waiting == 0
    wishes = Sampling(max_new_tokens=3, temperature=0)
    assert same(engine.submit(PROMPT, wishes).result(30), alone(opened, PROMPT, wishes))


def test_an_answer_waits_for_one_piece_of_a_long_prompt(engine: Engine, opened: OpenModel) -> None:
    turns: list[int] = []

    class Turns:
        last = -1

        def on_event(self, event: Event) -> None:
            if isinstance(event, ExpertsSelected) and current().number != self.last:
                self.last = current().number
                turns.append(current().tokens)

    answered = engine.submit(PROMPT, Sampling(max_new_tokens=200, temperature=0))
    until(lambda: answered.phase == "decode")
    opened.runtime.add_observer(observer := Turns())
    engine.submit(PROMPT * 3, Sampling(max_new_tokens=1)).result(30)
    opened.runtime.remove_observer(observer)
    answered.cancel()
    pieces = [place for place, tokens in enumerate(turns) if tokens > 1]
    assert len(pieces) > 3
    assert all(tokens <= PIECE for tokens in turns)
    assert all(after - before > 1 for before, after in itertools.pairwise(pieces))


@pytest.mark.skipif(OLD, reason="positions are made within the pass there, and answers take turns")
def test_what_several_took_of_experts_together_is_named_as_shared(sharing: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=40, temperature=0)
    with Engine(sharing) as engine:
        tickets = [engine.submit(PROMPT, wishes, provenance=True) for _ in range(3)]
        told = [ticket.result(60) and ticket.provenance for ticket in tickets]
    shared = [one.shared for one in told if one is not None and one.shared is not None]
    assert len(shared) == 3
    assert max(one.passes for one in shared) > 10
    assert all(one.experts_requested > 0 and one.shared is one.batching is None for one in shared)
    # Its layers give rows the bits that they have alone.
    assert [one.batching for one in told if one is not None] == ["exact"] * 3


@pytest.mark.skipif(OLD, reason="positions are made within the pass there, and answers take turns")
def test_answers_that_may_have_other_bits_say_so(opened: OpenModel) -> None:
    """The bundled model's linear layers are torch's."""
    wishes = Sampling(max_new_tokens=12, temperature=0)
    expected = alone(opened, PROMPT, wishes)
    with Engine(opened, batching="fast") as engine:
        tickets = [engine.submit(PROMPT, wishes, provenance=True) for _ in range(3)]
        completions = [ticket.result(60) for ticket in tickets]
        told = [ticket.provenance for ticket in tickets]
        by_itself = engine.submit(PROMPT, wishes, provenance=True)
        assert same(by_itself.result(60), expected)
    assert all(one is not None and one.shared is not None and one.batching == "fast" for one in told)
    assert [len(one.token_ids) for one in completions] == [12] * 3
    assert by_itself.provenance is not None
    assert by_itself.provenance.batching == "exact"


def test_what_a_request_took_of_experts_is_its_own(engine: Engine, opened: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=6, temperature=0)
    before = opened.runtime.stats().total
    ticket = engine.submit(PROMPT, wishes, provenance=True)
    ticket.result(30)
    after = opened.runtime.stats().total
    took = ticket.provenance
    assert took is not None
    assert took.shared is None
    assert took.experts_requested == after.requested - before.requested > 0
    assert engine.submit(PROMPT, wishes).provenance is None


def test_nothing_is_kept_of_what_is_over(engine: Engine) -> None:
    tickets = [engine.submit(PROMPT, Sampling(max_new_tokens=2)), engine.submit([10**6])]
    assert tickets[0].result(30).token_ids
    with pytest.raises(InputError):
        tickets[1].result(30)
    known = [weakref.ref(ticket) for ticket in tickets]
    tickets.clear()

    def gone() -> bool:
        gc.collect()
        return all(ticket() is None for ticket in known)

    until(gone)


def test_prompts_that_begin_alike_are_computed_once_and_answered_as_alone(opened: OpenModel) -> None:
    wishes = Sampling(max_new_tokens=5, seed=7)
    with Engine(opened, piece=PIECE) as engine:
        prompts = [PROMPT + end for end in ("", " and so on", ", and all the rest of it was")]
        found = [engine.submit(prompt, wishes, salt="anna").result(60) for prompt in prompts]
        assert all(same(ours, alone(opened, prompt, wishes)) for ours, prompt in zip(found, prompts, strict=True))
        assert [one.reused_tokens > 0 for one in found] == [False, True, True]
        assert engine.submit(PROMPT, wishes, salt="bert").result(60).reused_tokens == 0
        assert engine.prefixes.counts.hits == 2
        # What was generated is computed anew when it comes back as a prompt, and gives what it gives alone.
        longer = PROMPT + found[0].text + " And"
        again = engine.submit(longer, wishes, salt="anna").result(60)
        assert again.reused_tokens == found[1].reused_tokens
        assert same(again, alone(opened, longer, wishes))
    with Engine(opened, piece=PIECE, prefix_memory=0) as engine:
        assert [engine.submit(PROMPT, wishes).result(60).reused_tokens for _ in range(2)] == [0, 0]


def test_a_prompt_that_is_given_up_is_gone_on_with(engine: Engine) -> None:
    ticket = engine.submit(PROMPT, Sampling(max_new_tokens=3))
    while not isinstance(ticket.event(60), Progress):
        pass
    ticket.cancel()
    assert engine.submit(PROMPT, Sampling(max_new_tokens=3)).result(60).reused_tokens >= PIECE


@pytest.mark.parametrize("options", [{"parallel": 0}, {"most_waiting": -1}, {"piece": 0}, {"batching": "quick"}])
def test_numbers_that_cannot_be_are_refused(opened: OpenModel, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Engine(opened, **options)  # type: ignore[arg-type]


def test_several_answers_compute_their_prompt_once(opened: OpenModel) -> None:
    wishes = [Sampling(max_new_tokens=5, seed=seed, temperature=1.5) for seed in range(5)]
    expected = [alone(opened, PROMPT, one) for one in wishes]

    def computed() -> int:
        return sum(opened.runtime.stats().prefill_tokens.values())

    with Engine(opened, piece=PIECE, parallel=3, prefix_memory=1 << 24) as engine:
        before = computed()
        tickets = [engine.submit(PROMPT, one, repeated=True, provenance=True) for one in wishes]
        got = [ticket.result(60) for ticket in tickets]
        assert [one.token_ids for one in got] == [one.token_ids for one in expected]
        assert computed() - before == got[0].prompt_tokens
        # Who computes which piece is as it happens; the ones that begin later find all of it.
        assert sum(one.prompt_tokens - one.reused_tokens for one in got) == got[0].prompt_tokens
        assert got[4].reused_tokens == got[4].prompt_tokens
        told = tickets[4].provenance
        assert told is not None
        assert told.passes + (0 if told.shared is None else told.shared.passes) == 4
        assert engine.governor.held == 0


def test_what_prompts_begin_with_outlives_the_engine(opened: OpenModel, tmp_path: Path) -> None:
    wishes = Sampling(max_new_tokens=4, seed=1)
    found = []
    for salt in ("anna", "anna", "bert"):
        with Engine(opened, piece=PIECE, prefix_dir=tmp_path / "prefixes", prefix_dir_limit=1 << 20) as engine:
            found.append(engine.submit(PROMPT, wishes, salt=salt).result(60))
    assert len({one.token_ids for one in found}) == 1
    assert [one.reused_tokens > 0 for one in found] == [False, True, False]
    (tmp_path / "prefixes").chmod(0o755)
    with pytest.raises(UsageError, match="Others can look"):
        Engine(opened, prefix_dir=tmp_path / "prefixes")
