"""The forward pass of a thread: one at a time, the inner one first, and gone with all that was kept for it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from coterie.cache import Consumer
from coterie.passes.clock import StepClock
from coterie.passes.current import Pass, Request, Row, Stated, carried, current, current_request
from coterie.spec import StepStarted


class Owner:
    """Something that keeps what it has to."""


class Kept:
    times = 0


class Told:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append((event, current().number, current().component))


class Cached:
    length = 7

    def get_seq_length(self) -> int:
        return self.length


class Module(nn.Module):
    """Does what it is told in its forward."""

    def __init__(self, inside: Any = lambda: None) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> Any:
        if past_key_values is not None:
            past_key_values.length += input_ids.shape[1]
        return self.inside()


def ids(tokens: int, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, tokens, dtype=torch.int64)


def watched(inside: Any, component: str = "text", observers: list[Any] | None = None) -> tuple[Module, StepClock]:
    module, clock = Module(inside), StepClock(component, [] if observers is None else observers)
    clock.install(module)
    return module, clock


def test_a_pass_is_current_in_its_forward_and_no_longer() -> None:
    outside = current()
    assert (outside.number, outside.component, outside.outer) == (-1, "", None)
    found = []
    module, clock = watched(lambda: found.append((current(), clock.now())))
    module(ids(5, batch=2))
    module(ids(1), past_key_values=Cached())
    (first, same), (second, _) = found
    assert first is same
    assert (first.number, first.component, first.phase) == (0, "text", "prefill")
    assert (first.batch, first.tokens, first.cached) == (2, 5, 0)
    assert (second.number, second.phase, second.decode, second.cached) == (1, "decode", True, 7)
    assert current() is outside


def test_what_is_kept_for_a_pass_goes_with_it_however_it_ends() -> None:
    owner, kept = Owner(), []

    def inside() -> None:
        for _ in range(2):
            state = current().state(owner, Kept)
            state.times += 1
        kept.append(weakref.ref(state))
        assert state.times == 2
        del state
        if len(kept) == 2:
            raise ZeroDivisionError

    module, _ = watched(inside)
    module(ids(3))
    with pytest.raises(ZeroDivisionError) as caught:
        module(ids(3))
    assert caught.value.__traceback__ is not None  # which has the frames that had the pass
    assert kept[1]() is None
    assert kept[0]() is None
    assert current().number == -1


def test_memory_is_let_go_of_though_the_exception_is_kept() -> None:
    met = []

    def inside() -> None:
        met.append(weakref.ref(current().memory))
        raise ZeroDivisionError

    module, _ = watched(inside)
    error: BaseException | None = None
    try:
        module(ids(3))
    except ZeroDivisionError as raised:
        error = raised
    assert error is not None
    assert met[0]() is None


def test_a_pass_in_a_pass_is_the_current_one_until_it_is_over() -> None:
    seen: list[tuple[int, str]] = []

    def note(clock: StepClock) -> None:
        seen.append((clock.now().number, clock.now().component))

    tower, of_tower = watched(lambda: note(of_text) or note(of_tower), "vision")

    def inside() -> None:
        note(of_text)
        tower(ids(4))
        note(of_text)
        seen.append((current("text").number, current().component))

    text, of_text = watched(inside)
    text(ids(2))
    text(ids(2))
    first = [(0, "text"), (0, "text"), (0, "vision"), (0, "text"), (0, "text")]
    assert seen == [*first, *((1, name) for _, name in first)]


def test_components_with_the_same_outermost_module_have_passes_of_their_own() -> None:
    told = Told()
    seen = []
    module = Module(lambda: seen.append([clock.now().component for clock in clocks]))
    clocks = [StepClock(name, [told]) for name in ("vision", "text")]
    for clock in clocks:
        clock.install(module)
    module(ids(3))
    assert seen == [["vision", "text"]]
    assert [(event.component, component) for event, _, component in told.events] == [("text",) * 2, ("vision",) * 2]


def test_a_step_that_begins_in_another_one_leaves_that_as_it_was() -> None:
    seen: list[int] = []

    def inside() -> None:
        number = current().number
        if number < 2:
            module(ids(1))
        seen.append(current().number)
        assert current().number == number

    module, _ = watched(inside)
    module(ids(1))
    assert seen == [2, 1, 0]
    assert current().number == -1


def test_layers_called_outside_a_pass_are_told_of_with_no_number() -> None:
    told = Told()
    clock = StepClock("text", [told])
    now = clock.now()
    assert (now.number, now.component, now.phase) == (-1, "text", "prefill")
    now.tell(lambda: StepStarted(step=now.number, component="text", phase="prefill", batch=1, tokens=1, input_ids=None))
    assert len(told.events) == 1
    assert now.memory is not now.memory  # nobody says when that is over
    owner = Owner()
    assert now.state(owner, Kept) is clock.now().state(owner, Kept)


def test_what_is_kept_outside_passes_goes_with_its_owner() -> None:
    owner = Owner()
    kept = [weakref.ref(one(owner, Kept)) for one in (current().state, carried, current_request().state)]
    assert all(one() is not None for one in kept)
    del owner
    gc.collect()
    assert all(one() is None for one in kept)


def test_what_is_carried_is_a_threads_own_and_outlasts_passes() -> None:
    owner, found = Owner(), []

    def inside() -> None:
        state = carried(owner, Kept)
        state.times += 1
        found.append(state.times)

    module, _ = watched(inside)
    module(ids(2))
    thread = threading.Thread(target=module, args=(ids(2),))
    thread.start()
    thread.join(60)
    module(ids(2))
    with Stated(Request()):
        module(ids(2))
    assert found == [1, 1, 2, 3]


@pytest.mark.parametrize("fails", [False, True])
def test_events_of_a_decode_step_are_told_when_it_is_over(fails: bool) -> None:
    told = Told()

    def event() -> StepStarted:
        return StepStarted(step=99, component="text", phase="decode", batch=1, tokens=1, input_ids=None)

    def inside() -> None:
        current().tell(event)
        current().tell(lambda: None)
        assert len(told.events) == before + (not decoding)
        if fails:
            raise ZeroDivisionError

    module, _ = watched(inside, observers=[told])
    for decoding in (False, True):
        before = len(told.events) + 1
        try:
            module(ids(1), past_key_values=Cached() if decoding else None)
        except ZeroDivisionError:
            assert fails
        assert len(told.events) == before + 1
    assert [number for _, number, _ in told.events] == [0, 0, 1, 1]


def test_who_makes_a_pass_says_which_phase_it_is() -> None:
    found: list[Pass] = []
    module, clock = watched(lambda: found.append(current()))

    def run() -> None:
        with Stated(phase="decode"):
            module(ids(1, batch=4))
            with Stated(phase="prefill"):
                module(ids(1), past_key_values=Cached())
            module(ids(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    module(ids(3))
    assert [one.phase for one in found] == ["decode", "prefill", "decode", "prefill"]
    assert clock.tokens == {"decode": 4 + 3, "prefill": 1 + 3}


def test_a_pass_has_the_rows_that_its_shapes_tell_or_that_are_stated() -> None:
    found: list[tuple[Row, ...]] = []
    module, _ = watched(lambda: found.append(current().rows))
    one, two = Request(), Request()
    stated = (Row(one, 5), Row(two, 9))
    module(ids(3, batch=2))
    module(ids(1), past_key_values=Cached())
    with Stated(rows=stated):
        module(ids(1, batch=2))
        with Stated(one):
            module(ids(1), past_key_values=Cached())
        module(ids(1, batch=3))
    module(ids(1))
    nobody = Row(None, 0)
    assert found == [(nobody,) * 2, (Row(None, 7),), stated, (Row(one, 7),), (nobody,) * 3, (nobody,)]
    assert current().rows == ()


def test_what_is_kept_of_a_request_is_its_own_and_of_a_threads_where_none_is_stated() -> None:
    owner, found = Owner(), []

    def inside() -> None:
        state = current_request().state(owner, Kept)
        state.times += 1
        found.append(state.times)

    module, _ = watched(inside)
    one = Request()
    for request in (one, Request(), one, None, None):
        with Stated(request):
            module(ids(2))
    thread = threading.Thread(target=module, args=(ids(2),))
    thread.start()
    thread.join(60)
    assert found == [1, 1, 2, 1, 2, 1]
    kept = weakref.ref(one.state(owner, Kept))
    one.drop(owner)
    one.drop(owner)
    assert kept() is None
    kept = weakref.ref(one.state(owner, Kept))
    del one, request
    assert kept() is None


def test_passes_of_a_thread_ask_the_cache_as_one_consumer_and_those_of_another_as_another() -> None:
    found = []
    module, clock = watched(lambda: found.append(clock.now().consumer))
    module(ids(2))
    thread = threading.Thread(target=module, args=(ids(2),))
    thread.start()
    thread.join(60)
    module(ids(2))
    assert found[0] is found[2] is clock.now().consumer
    assert found[1] is not found[0]
    own = Consumer()
    assert Pass(consumer=own).consumer is own
