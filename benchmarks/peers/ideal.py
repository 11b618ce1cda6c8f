"""What a decode step would take if every read hid behind arithmetic as well as it can.

A layer cannot compute an expert before it is read, but it can compute the resident ones while the others are being
read: its time is at least ``dense + max(misses × bytes ÷ bandwidth, hits × time of an expert)``. The sum of that over
layers is what an engine without prefetching can reach, so misses are those without it: read ahead they are no misses,
but have to be read all the same. With perfect foresight reads would hide behind the whole step:
``max(all reads, all arithmetic)``. Bandwidth is that of raw reads of the same size; dense and expert times are those of
the same engine with everything in memory. Where reads take time from arithmetic and arithmetic from reads, that is more
than the machine can give; with the costs of both at once (:mod:`peers.costs`) it is what it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ideal:
    """Seconds per decode step, means.

    Attributes:
        layered: Reads of a layer hide behind the hits of that layer.
        foreseen: Reads hide behind everything.
    """

    layered: float
    foreseen: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the parts of a step take by themselves.

    Attributes:
        rest_s: Seconds of a step without its experts.
        expert_s: Seconds of one expert's arithmetic.
        expert_bytes: Bytes of one expert.
        bandwidth: Bytes per second that the disk gives.
    """

    rest_s: float
    expert_s: float
    expert_bytes: int
    bandwidth: float


def ideal_step(served: Sequence[Sequence[tuple[int, int]]], costs: Costs) -> Ideal:
    """The ideal of recorded steps.

    Args:
        served: For each step, hits and misses of each layer.
        costs: What each takes.
    """
    read_s = costs.expert_bytes / costs.bandwidth
    layered = foreseen = 0.0
    for step in served:
        layered += costs.rest_s + sum(max(misses * read_s, hits * costs.expert_s) for hits, misses in step)
        reads = read_s * sum(misses for _, misses in step)
        foreseen += max(reads, costs.rest_s + costs.expert_s * sum(hits + misses for hits, misses in step))
    return Ideal(layered / len(served), foreseen / len(served))
