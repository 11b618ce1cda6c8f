"""Predictions are made where steps are shorter with them, whatever the reason."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from coterie.cache import ReadTimes
from coterie.passes.trial import PrefetchTrial


class Machine:
    """Steps that take a given time, with some waiting."""

    def __init__(self, without_s: float, with_s: float, wait_s: float, *, scatter: float = 0.0) -> None:
        self.now = 0.0
        self.waited = 0.0
        self.without_s, self.with_s, self.wait_s = without_s, with_s, wait_s
        self.scatter = scatter
        self.random = random.Random(0)
        self.trial = PrefetchTrial("auto", self.times, lambda: self.now)

    def times(self) -> ReadTimes:
        return ReadTimes(demanded_s=0.0, ahead_s=0.0, wait_s=self.waited)

    def step(self) -> bool:
        predictions = self.trial.begin_step()
        took = self.with_s if predictions else self.without_s
        self.now += took * self.random.uniform(1 - self.scatter, 1 + self.scatter)
        self.waited += self.wait_s
        return predictions

    def share(self, steps: int) -> float:
        return sum(self.step() for _ in range(steps)) / steps


def test_it_goes_on_where_steps_are_shorter() -> None:
    machine = Machine(1.0, 0.8, 0.3, scatter=0.2)
    machine.share(200)
    assert machine.trial.verdict == "pays"
    assert machine.share(2000) > 0.9


def test_it_stops_where_steps_are_longer() -> None:
    machine = Machine(1.0, 1.2, 0.3, scatter=0.2)
    machine.share(200)
    assert machine.trial.verdict == "slower"
    assert machine.share(4000) < 0.05


def test_what_makes_no_difference_is_not_done() -> None:
    machine = Machine(1.0, 1.0, 0.3)
    machine.share(200)
    assert machine.trial.verdict == "slower"


def test_nothing_is_tried_where_there_is_nothing_to_wait_for() -> None:
    machine = Machine(1.0, 0.5, 0.001)
    assert machine.share(1000) == 0
    assert machine.trial.verdict == "idle"


def test_a_clear_case_is_decided_soon() -> None:
    machine = Machine(1.0, 1.5, 0.5)
    tried = Counter(machine.step() for _ in range(60))
    assert machine.trial.verdict == "slower"
    assert tried[True] == 16


def test_a_clear_gain_is_had_sooner_than_a_clear_loss() -> None:
    machine = Machine(1.0, 0.8, 0.3)
    tried = Counter(machine.step() for _ in range(25))
    assert machine.trial.verdict == "pays"
    assert tried == {False: 16, True: 9}


def test_it_notices_when_things_change() -> None:
    machine = Machine(1.0, 1.2, 0.3)
    machine.share(100)
    assert machine.trial.verdict == "slower"
    machine.with_s = 0.7
    machine.share(1000)
    assert machine.trial.verdict == "pays"
    machine.with_s = 1.3
    machine.share(2000)
    assert machine.trial.verdict == "slower"


def test_pauses_between_steps_do_not_count() -> None:
    machine = Machine(1.0, 0.8, 0.3)
    for n in range(300):
        if machine.trial.reads and n % 3 == 0:  # a prompt, or a user who thinks
            machine.now += 50
            machine.trial.interrupt()
        machine.step()
    assert machine.trial.verdict == "pays"


@pytest.mark.parametrize("order", [lambda n: 1.0 + n / 100, lambda n: 3.0 - n / 100], ids=["slower", "faster"])
def test_a_drift_of_the_machine_is_not_taken_for_an_effect(order: Callable[[int], float]) -> None:
    machine = Machine(1.0, 1.0, 0.3)
    for n in range(140):
        machine.without_s = machine.with_s = order(n)
        machine.wait_s = 0.3 * order(n)
        machine.step()
    assert machine.trial.verdict == "slower"


def test_on_is_on() -> None:
    trial = PrefetchTrial("on", lambda: ReadTimes(0.0, 0.0, 0.0), lambda: 0.0)
    assert trial.reads
    assert trial.begin_step()
    assert trial.verdict == "pays"


def test_steps_that_run_side_by_side_are_not_compared() -> None:
    machine = Machine(1.0, 0.5, 0.3)
    with ThreadPoolExecutor(1) as other:
        for _ in range(200):
            machine.step()
            other.submit(machine.trial.begin_step).result()
    assert machine.trial.verdict == "unknown"
    machine.share(200)
    assert machine.trial.verdict == "pays"


def test_a_prompt_in_one_thread_and_steps_in_another() -> None:
    machine = Machine(1.0, 0.8, 0.3)
    done = threading.Event()

    def prompts() -> None:
        while not done.is_set():
            machine.trial.interrupt()

    with ThreadPoolExecutor(1) as other:
        running = other.submit(prompts)
        machine.share(500)
        done.set()
        running.result()
