"""Room for replicas."""

from typing import Any

import pytest

from coterie.cluster.placement import Placement, most_workers, placement
from coterie.errors import UsageError
from coterie.spec.opening import Opening

GIB = 1 << 30


def node(cpus: int, gib: int, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "memory": float(gib * GIB)}}


@pytest.mark.parametrize(
    ("nodes", "count", "cpus"),
    [
        ([node(8, 32)], 1, 8),
        ([node(8, 32)], 2, 4),
        ([node(8, 32)], 3, 2),
        ([node(8, 32), node(4, 16)], 3, 4),
        ([node(8, 16), node(4, 16)], 4, 2),
        ([node(8, 16), node(8, 64, alive=False)], 2, 4),
    ],
)
def test_processors_are_shared_by_the_replicas_of_a_machine(nodes: list[dict[str, Any]], count: int, cpus: int) -> None:
    assert placement(nodes, count, Opening(memory="8GiB")).cpus == cpus


def test_threads_that_are_asked_for_are_kept() -> None:
    assert placement([node(8, 32)], 2, Opening(memory="8GiB", threads=1)).cpus == 1
    with pytest.raises(UsageError, match="no room for 2 replicas"):
        placement([node(8, 32)], 2, Opening(memory="8GiB", threads=5))


@pytest.mark.parametrize("nodes", [[], [node(8, 15)], [node(1, 64)]])
def test_too_many_are_refused_with_what_there_is(nodes: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=r"no room for 2 replicas of 8\.00 GiB: Ray has"):
        placement(nodes, 2, Opening(memory="8GiB"))


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [([node(8, 32)], 4), ([node(8, 16), node(2, 64)], 3), ([node(8, 7), node(9, 100)], 4), ([node(2, 8)] * 3, 3)],
)
def test_workers_fill_the_machines(nodes: list[dict[str, Any]], workers: int) -> None:
    assert most_workers(nodes, Placement(2, 8 * GIB)) == workers


def test_no_room_for_a_worker_is_said_with_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"a worker with 4 threads and 8\.00 GiB: Ray has 2 CPUs and 64\.00 GiB"):
        most_workers([node(2, 64)], Placement(4, 8 * GIB))
