"""How fast a model would run: from bytes, from a hit rate, and from what was measured of the machine.

A token takes the time to multiply its weights, and the time to read the experts that are not in memory. Reading goes on
while the processor computes, as far as it can be foreseen what will be needed: so the two together are at least the
larger one, and at most their sum.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from coterie.planner.machine import BF16, DiskSpeed, Machine
from coterie.planner.ranges import Range
from coterie.planner.subject import Subject

Limit = Literal["disk", "memory bus", "processor", "memory"]

_COMPUTE = Range(low=0.75, expected=1.0, high=1.5)
"""How many times the measured products' time a forward pass takes, products of other shapes considered."""
_PROMPT = Range(low=0.45, expected=0.7, high=1.3)
"""The same of a prompt: layers outside experts have more rows at once than were measured, some experts fewer."""
_LAYER_S = Range(low=0.03e-3, expected=0.15e-3, high=0.8e-3)
"""What a layer takes beside products: attention, norms, the router, the calls themselves."""
_DISK = Range(low=0.7, expected=1.0, high=1.15)
"""How many times the measured speed a disk gives beside a model that computes."""
_BUS_SHARE = 0.5
"""From this share of the memory bus's speed on, the bus and not the processor limits products."""
_DISTINCT = Range(low=0.4, expected=0.7, high=1.0)
"""Experts that a prompt uses, of as many as it would if its tokens chose without regard to each other."""
WRITING_SHARE = 0.5
"""How fast a disk writes, of how fast it reads in order, at the least that is counted with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of something.

    Attributes:
        compute: Seconds of the processor.
        reading: Seconds of the disk.
        total: Seconds until it is done.
    """

    compute: Range
    reading: Range
    total: Range


def decode_timing(subject: Subject, machine: Machine, disk: DiskSpeed, miss: Range) -> Timing:
    """A token after the prompt, whose experts miss at such a rate."""
    products = _products_s(subject, machine)
    compute = _with_layers(products, subject, _COMPUTE)
    nbytes = miss.map(lambda rate: rate * subject.working_set)
    return _together(compute, _reading(nbytes, disk))


def prompt_timing(subject: Subject, machine: Machine, disk: DiskSpeed, *, tokens: int, share: float) -> Timing:
    """A prompt, until the first token after it.

    Args:
        subject: The model.
        machine: What it runs on.
        disk: What experts are read from.
        tokens: Of the prompt.
        share: Of the experts, that is in memory when the prompt comes: the most that can be, so that the range reaches
            from a full cache to an empty one.
    """
    seconds = 0.0
    for precision, touched in _touched(subject).items():
        seconds += touched * tokens / machine.product(precision).prompt
    compute = _with_layers(seconds, subject, _PROMPT)
    chosen = 1 - (1 - min(1.0, subject.top_k / max(1.0, subject.experts))) ** tokens
    most = subject.expert_nbytes * chosen
    nbytes = Range(
        low=most * _DISTINCT.low * (1 - share),
        expected=most * _DISTINCT.expected * (1 - share / 2),
        high=most * _DISTINCT.high,
    )
    return _together(compute, _reading(nbytes, disk))


def limit_of(subject: Subject, machine: Machine, timing: Timing) -> Limit:
    """What would have to be faster."""
    if timing.reading.expected > timing.compute.expected:
        return "disk"
    seconds = {precision: nbytes / machine.product(precision).token for precision, nbytes in _touched(subject).items()}
    slowest = max(seconds, key=lambda precision: seconds[precision], default=BF16)
    return "memory bus" if machine.product(slowest).token >= _BUS_SHARE * machine.bus else "processor"


def preparing_s(machine: Machine, *, read: int, written: int, quantised: bool) -> Range | None:
    """Seconds to make a store, once everything is downloaded; None if the disk was not measured in order.

    Args:
        machine: Where it is made.
        read: Bytes of the checkpoint.
        written: Bytes of the store.
        quantised: Whether weights are quantised on the way.
    """
    disk = machine.disk
    if disk is None:
        return None
    speed = disk.sequential or disk.random
    reading, writing = read / speed, written / speed
    computing = read / machine.quantising if quantised else 0.0
    return Range(
        low=max(reading, computing, writing),
        expected=max(reading + writing / WRITING_SHARE, computing),
        high=2 * (reading + computing + writing / WRITING_SHARE),
    )


def _touched(subject: Subject) -> Counter[str]:
    """Bytes of weights that a token is multiplied with, by precision."""
    touched = Counter(subject.dense)
    touched[subject.expert_precision] += int(subject.working_set)
    return touched


def _products_s(subject: Subject, machine: Machine) -> float:
    return sum(nbytes / machine.product(precision).token for precision, nbytes in _touched(subject).items())


def _with_layers(products: float, subject: Subject, times: Range) -> Range:
    return Range(
        low=products * times.low + subject.layers * _LAYER_S.low,
        expected=products * times.expected + subject.layers * _LAYER_S.expected,
        high=products * times.high + subject.layers * _LAYER_S.high,
    )


def _reading(nbytes: Range, disk: DiskSpeed) -> Range:
    return Range(
        low=nbytes.low / (disk.random * _DISK.high),
        expected=nbytes.expected / disk.random,
        high=nbytes.high / (disk.random * _DISK.low),
    )


def _together(compute: Range, reading: Range) -> Timing:
    total = Range(
        low=max(compute.low, reading.low),
        expected=max(compute.expected, reading.expected) + min(compute.expected, reading.expected) / 2,
        high=compute.high + reading.high,
    )
    return Timing(compute=compute, reading=reading, total=total)
