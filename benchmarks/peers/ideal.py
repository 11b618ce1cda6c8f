"""What a decode step would take if every read hid behind arithmetic as well as it can.

A layer cannot compute an expert before it is read, but it can compute the resident ones while the others are being
read: its time is at least ``dense + max(misses × bytes ÷ bandwidth, hits × time of an expert)``. The sum of that over
layers is what an engine without prefetching can reach, so misses are those without it: read ahead they are no misses,
but have to be read all the same. With perfect foresight reads would hide behind the whole step:
``max(all reads, all arithmetic)``. Bandwidth is that of raw reads of the same size; dense and expert times are those of
the same engine with everything in memory. While the cache fills, what is read goes to memory that was not used before,
which has a bandwidth of its own: the kernel, and in a virtual machine its host, finds and clears it first. Where reads
take time from arithmetic and arithmetic from reads, that is more than the machine can give; with the costs of both at
once (:mod:`peers.costs`) it is what it can.
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
        new_bandwidth: Bytes per second into memory that was not used before.
    """

    rest_s: float
    expert_s: float
    expert_bytes: int
    bandwidth: float
    new_bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one decode step found.

    Attributes:
        layers: Hits and misses of each layer.
        new: Experts that were read to memory that was not used before.
    """

    layers: Sequence[tuple[int, int]]
    new: int

    @property
    def misses(self) -> int:
        """Of all layers."""
        return sum(missed for _, missed in self.layers)

    @property
    def uses(self) -> int:
        """Hits and misses of all layers."""
        return sum(hits + missed for hits, missed in self.layers)

    @property
    def into_new_memory(self) -> int:
        """Misses that were read to where nothing was before: what is read ahead can be more."""
        return min(self.new, self.misses)


def ideal_step(served: Sequence[Served], costs: Costs) -> Ideal:
    """The ideal of recorded steps.

    Args:
        served: The steps.
        costs: What each part takes.
    """
    read_s, new_read_s = costs.expert_bytes / costs.bandwidth, costs.expert_bytes / costs.new_bandwidth
    layered = foreseen = 0.0
    for step in served:
        left, reads_s = step.new, 0.0
        layered += costs.rest_s
        for hits, misses in step.layers:
            new = min(left, misses)
            left -= new
            layer_s = new * new_read_s + (misses - new) * read_s
            layered += max(layer_s, hits * costs.expert_s)
            reads_s += layer_s
        foreseen += max(reads_s, costs.rest_s + costs.expert_s * step.uses)
    return Ideal(layered / len(served), foreseen / len(served))
