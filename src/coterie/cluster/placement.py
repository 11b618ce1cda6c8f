"""Room for processes with a model on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coterie.errors import UsageError
from coterie.spec.sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from coterie.spec.opening import Opening


@dataclass(frozen=True, slots=True)
class Placement:
    """What each process takes of its machine.

    Attributes:
        cpus: Processors, which is how many threads it computes with.
        nbytes: Bytes of memory.
    """

    cpus: int
    nbytes: int


def placement(nodes: Sequence[Mapping[str, Any]], count: int, opening: Opening) -> Placement:
    """What each of some replicas takes of its machine, so that all have room.

    Args:
        nodes: The machines, as ``ray.nodes()`` gives them.
        count: Replicas.
        opening: How each opens the model. Without a number of threads, those of a machine are shared by its replicas.

    Raises:
        UsageError: If there is no room for so many.
    """
    assert opening.memory is not None
    nbytes = parse_bytes(opening.memory, what="memory")
    most = max((cpus for cpus, _ in _free(nodes)), default=0)
    for cpus in [opening.threads] if opening.threads else range(most, 0, -1):
        if _room(nodes, Placement(cpus, nbytes)) >= count:
            return Placement(cpus, nbytes)
    raise UsageError(
        f"There is no room for {count} replicas of {format_bytes(nbytes)}: Ray has {_listed(nodes)}.",
        advice="Give fewer --replicas, less --memory or fewer --threads.",
        count=count, nbytes=nbytes,
    )  # fmt: skip


def most_workers(nodes: Sequence[Mapping[str, Any]], each: Placement) -> int:
    """How many processes have room on all machines together.

    Args:
        nodes: The machines, as ``ray.nodes()`` gives them.
        each: What one of them takes.

    Raises:
        UsageError: If there is room for none.
    """
    workers = _room(nodes, each)
    if not workers:
        raise UsageError(
            f"There is no room for a worker with {each.cpus} threads and {format_bytes(each.nbytes)}: Ray has "
            f"{_listed(nodes)}.",
            advice="Give less --memory, or fewer --threads: by default as many as this machine has processors.",
            threads=each.cpus, nbytes=each.nbytes,
        )  # fmt: skip
    return workers


def _free(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Processors and bytes of memory of each machine that is there."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [(int(one.get("CPU", 0)), int(one.get("memory", 0))) for one in resources]


def _room(nodes: Sequence[Mapping[str, Any]], each: Placement) -> int:
    return sum(min(cpus // each.cpus, nbytes // each.nbytes) for cpus, nbytes in _free(nodes))


def _listed(nodes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{cpus} CPUs and {format_bytes(nbytes)}" for cpus, nbytes in _free(nodes)) or "no machine"
