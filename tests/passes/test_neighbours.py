import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from coterie.passes import neighbours as module
from coterie.passes.neighbours import CALM, PERIOD_S, REST_S, Judgement, Neighbours, Onlooker
from coterie.plan.busyness import ProcessorTimes


def judged(looks: list[tuple[float | None, int]], *, cores: int = 4, quota: int | None = None) -> list[bool]:
    judgement = Judgement(cores, quota)
    return [judgement.look(others, threads) for others, threads in looks]


def test_threads_sleep_as_soon_as_others_need_their_processors() -> None:
    assert judged([(0.0, 4), (0.2, 4), (0.9, 4)]) == [False, False, True]
    # With a processor to spare, one busy process takes nobody's.
    assert judged([(1.0, 3), (1.5, 3)]) == [False, True]


def test_they_turn_again_only_after_some_calm_looks() -> None:
    looks = [(1.0, 4), *[(0.0, 4)] * (CALM - 1), (0.2, 4), (0.0, 4), (0.0, 4)]
    assert judged(looks) == [True] * CALM + [True, False, False]
    assert judged([(1.0, 4), *[(0.2, 4)] * 20]) == [True] * 21


def test_one_thread_waits_for_nobody() -> None:
    assert judged([(9.0, 1)]) == [False]


def test_a_quota_below_the_threads_is_as_good_as_a_busy_machine() -> None:
    assert judged([(0.0, 4)], quota=2) == [True]
    assert judged([(0.0, 2)], quota=2) == [False]


def test_what_is_not_known_changes_nothing() -> None:
    assert judged([(None, 4)] * 3) == [False] * 3


class FakeCrowd:
    def __init__(self) -> None:
        self.stands = False
        self.history: list[bool] = []

    def gather(self) -> None:
        self._set(True)

    def scatter(self) -> None:
        self._set(False)

    def _set(self, stands: bool) -> None:
        if stands != self.stands:
            self.history.append(stands)
        self.stands = stands


class Machine:
    """Two processors; what others use is said for each look. Without any more to say, nobody computes."""

    def __init__(self, others: list[float]) -> None:
        self._others: Iterator[float] = iter(others)
        self._busy = 0.0
        self._at = 0.0
        self.pauses: list[float] = []

    def times(self) -> ProcessorTimes:
        found = ProcessorTimes(at_s=self._at, busy_s=self._busy, own_s=0.0)
        self._at += 1.0
        self._busy += next(self._others, 0.0)
        return found

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(module, "core_quota", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def ended(neighbours: Neighbours) -> None:
    watcher = neighbours._watcher
    if watcher is not None:
        watcher.join(timeout=60)
        assert not watcher.is_alive()


def test_the_watcher_gathers_scatters_and_rests(two: None) -> None:
    crowd, machine = FakeCrowd(), Machine([1.0, 1.0, 1.0, 0, 0, 0, 0, 0])
    neighbours = Neighbours(crowd, times=machine.times, pause=machine.pause)
    neighbours.begin()
    neighbours.note()
    ended(neighbours)
    assert crowd.history == [True, False]
    assert set(machine.pauses) == {PERIOD_S}
    assert len(machine.pauses) >= REST_S / 1.0


class FakeHelper:
    def __init__(self, wants: list[bool]) -> None:
        self._wants = iter(wants)

    def wants_processor(self) -> bool:
        return next(self._wants, False)


def test_threads_sleep_while_a_helper_wants_a_processor(two: None) -> None:
    crowd, machine, helper = FakeCrowd(), Machine([]), FakeHelper([False, True, True])
    neighbours = Neighbours(crowd, times=machine.times, pause=machine.pause)
    neighbours.heed(helper)
    neighbours.begin()
    neighbours.note()
    ended(neighbours)
    assert crowd.history == [True, False]


def test_a_helper_that_is_gone_wants_nothing(two: None) -> None:
    crowd, machine = FakeCrowd(), Machine([])
    neighbours = Neighbours(crowd, times=machine.times, pause=machine.pause)
    neighbours.heed(FakeHelper([True] * 99))
    neighbours.begin()
    neighbours.note()
    ended(neighbours)
    assert crowd.history == []


def test_a_later_pass_starts_it_anew(two: None) -> None:
    crowd, machine = FakeCrowd(), Machine([])
    neighbours = Neighbours(crowd, times=machine.times, pause=machine.pause)
    for _ in range(3):
        neighbours.note()
        ended(neighbours)
        assert neighbours._watcher is None
    assert crowd.history == []


def test_one_thread_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    neighbours = Neighbours(FakeCrowd(), times=Machine([]).times)
    before = threading.active_count()
    neighbours.note()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("others", "environment", "said"),
    [
        (1.0, {"OMP_WAIT_POLICY": "active"}, ("OMP_WAIT_POLICY=active is set", "unset OMP_WAIT_POLICY")),
        (1.0, {"GOMP_SPINCOUNT": "300000"}, ("GOMP_SPINCOUNT=300000 is set",)),
        (1.0, {"OMP_WAIT_POLICY": "passive"}, None),
        (0.1, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_opening_a_model_warns_where_nothing_can_be_done(
    two: None,
    monkeypatch: pytest.MonkeyPatch,
    others: float,
    environment: dict[str, str],
    said: tuple[str, ...] | None,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    onlooker = Onlooker(times=Machine([others]).times)
    onlooker.begin()
    warning = onlooker.warning()
    assert (warning is None) == (said is None)
    assert all(part in str(warning) for part in said or ())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="adapts on Linux only")
def test_a_model_runs_the_same_while_threads_sleep() -> None:
    """Without the suite's OMP_WAIT_POLICY, beside a busy process, on two threads."""
    script = (
        "import coterie, os, subprocess, sys, torch\n"
        "model = coterie.load('bundled', expert_memory='100%', threads=2)\n"
        "hog = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "try:\n"
        "    ids = torch.arange(5, 25).reshape(1, -1)\n"
        "    texts = {tuple(model.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist()) for _ in range(4)}\n"
        "    print(len(texts))\n"
        "finally:\n"
        "    hog.kill()\n"
    )
    import os

    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1"
