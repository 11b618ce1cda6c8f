"""Workers of a real Ray of several processes: `make test-ray`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coterie.cluster.placement import Placement
from coterie.errors import ClusterError, InputError, UsageError
from on_ray.processes import worker_pids
from on_ray.toy import FACTS, Shard, ToyWork

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

EACH = Placement(1, 64 << 20)


@contextmanager
def workers(cluster: str, work: ToyWork | None = None, each: Placement = EACH) -> Iterator[Any]:
    from coterie.cluster.ray_workers import ray_workers

    with ray_workers(cluster, work or ToyWork(), each=each, expected=FACTS) as found:
        yield found


def never() -> bool:
    return False


def same(shard: Shard) -> Shard:
    return shard


def test_results_come_in_order_and_all_workers_work(cluster: str) -> None:
    numbers = [Shard(number, seconds=0.05 * (number % 3)) for number in range(30)]

    def odd(shard: Shard) -> Shard | None:
        return shard if shard.number % 5 else None

    with workers(cluster) as found:
        assert found.facts(never) == FACTS
        told = list(found.map(numbers, odd, never))
    assert [shard for shard, _ in told] == numbers
    assert [result and result[0] for _, result in told] == [n * n if n % 5 else None for n in range(30)]
    assert len({result[1] for _, result in told if result}) == 2


def test_a_killed_worker_is_made_up_for(cluster: str, tmp_path: Path) -> None:
    numbers = [
        Shard(number, trouble="kill" if number in (3, 11) else "", file=str(tmp_path / str(number)), seconds=0.02)
        for number in range(24)
    ]
    with workers(cluster) as found, pytest.warns(UserWarning, match="A worker was lost"):
        assert [result[0] for _, result in found.map(numbers, same, never)] == [n * n for n in range(24)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["11", "3"]


def test_workers_that_are_lost_while_they_wait_are_made_up_for(cluster: str) -> None:
    import ray

    numbers = [Shard(number) for number in range(6)]
    with workers(cluster) as found:
        assert [result[0] for _, result in found.map(numbers, same, never)] == [n * n for n in range(6)]
        for pid in worker_pids():  # some may be of the test before: Ray does not wait for their end
            os.kill(pid, signal.SIGKILL)
        # Ray starts others, which answer and have nothing open.
        ray.get([hand.actor.is_there.options(max_task_retries=-1).remote() for hand in found._hands], timeout=120)
        with pytest.warns(UserWarning, match="A worker was lost"):
            assert [result[0] for _, result in found.map(numbers, same, never)] == [n * n for n in range(6)]


@pytest.mark.filterwarnings("ignore:A worker was lost")
def test_work_that_kills_whoever_does_it_is_given_up(cluster: str) -> None:
    numbers = [Shard(number, trouble="always" if number == 4 else "") for number in range(8)]
    told: list[int] = []
    with workers(cluster) as found, pytest.raises(ClusterError, match="3 workers ended while they had the same part"):
        told.extend(result[0] for _, result in found.map(numbers, same, never))
    assert told == [0, 1, 4, 9][: len(told)]


def test_an_error_comes_after_what_was_before_it(cluster: str) -> None:
    told: list[int] = []
    numbers = [Shard(number, trouble="error" if number == 5 else "") for number in range(20)]
    with workers(cluster) as found:
        with pytest.raises(InputError, match="5 is no number") as raised:
            told.extend(result[0] for _, result in found.map(numbers, same, never))
        assert raised.value.path == Path("x")
        assert told == [0, 1, 4, 9, 16]

        def broken() -> Iterator[Shard]:
            yield from numbers[:3]
            raise InputError("There is no more.")

        told.clear()
        with pytest.raises(InputError, match="no more"):
            told.extend(result[0] for _, result in found.map(broken(), same, never))
        assert told == [0, 1, 4]


def test_stopping_waits_for_nobody(cluster: str) -> None:
    begin = time.monotonic()
    told: list[int] = []

    def stops() -> bool:
        return len(told) >= 2

    numbers = [Shard(number, seconds=0.0 if number < 2 else 60.0) for number in range(6)]
    with workers(cluster) as found:
        for _, result in found.map(numbers, same, stops):
            told.append(result[0])
    assert told == [0, 1]
    assert time.monotonic() - begin < 55
    with workers(cluster) as found, pytest.raises(KeyboardInterrupt):
        found.facts(lambda: True)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (ToyWork(trouble="missing"), r"A worker on .* cannot open the model: There is no directory /models/m\. .*same"),
        (ToyWork(trouble="killed"), "ended 3 times while it opened the model"),
        (ToyWork(replace(FACTS, models={"m": "abd"})), "The model m on .* is another one than here: .* abd, not abc"),
        (ToyWork(replace(FACTS, releases={"torch": "1"})), "has torch 1, and this machine 2"),
    ],
)
def test_workers_that_would_give_other_results_are_refused(cluster: str, work: ToyWork, message: str) -> None:
    with workers(cluster, work) as found, pytest.raises(ClusterError, match=message):
        found.facts(never)


def test_other_instructions_are_told(cluster: str) -> None:
    work = ToyWork(replace(FACTS, kernels="neon"))
    with workers(cluster, work) as found, pytest.warns(UserWarning, match=r"other instructions \(neon\) .*\(avx2\)"):
        found.facts(never)


def test_no_room(cluster: str) -> None:
    with pytest.raises(UsageError, match="no room for a worker with 3 threads"), workers(cluster, each=Placement(3, 1)):
        pass
