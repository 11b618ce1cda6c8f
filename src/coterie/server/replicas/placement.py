"""Room for replicas on the machines of a cluster."""

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
    """What each replica takes of its machine.

    Attributes:
        cpus: Processors, which is how many threads it computes with.
        nbytes: Bytes of memory.
    """

    cpus: int
    nbytes: int


def placement(nodes: Sequence[Mapping[str, Any]], count: int, opening: Opening) -> Placement:
    """What each replica takes of its machine, so that all have room.

    Args:
        nodes: The machines, as ``ray.nodes()`` gives them.
        count: Replicas.
        opening: How each opens the model. Without a number of threads, those of a machine are shared by its replicas.

    Raises:
        UsageError: If there is no room for so many.
    """
    assert opening.memory is not None
    nbytes = parse_bytes(opening.memory, what="memory")
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    most = max((int(one.get("CPU", 0)) for one in resources), default=0)
    for cpus in [opening.threads] if opening.threads else range(most, 0, -1):
        room = sum(min(int(one.get("CPU", 0)) // cpus, int(one.get("memory", 0)) // nbytes) for one in resources)
        if room >= count:
            return Placement(cpus, nbytes)
    free = ", ".join(
        f"{int(one.get('CPU', 0))} CPUs and {format_bytes(int(one.get('memory', 0)))}" for one in resources
    )
    raise UsageError(
        f"There is no room for {count} replicas of {format_bytes(nbytes)}: Ray has {free or 'no machine'}.",
        advice="Give fewer --replicas, less --memory or fewer --threads.",
        count=count, nbytes=nbytes,
    )  # fmt: skip
