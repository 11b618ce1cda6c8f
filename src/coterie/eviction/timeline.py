"""What is in memory over the time of a run, as a policy has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.eviction.recorded import RecordedTrace
from coterie.eviction.simulator import simulate
from coterie.eviction.trace import Group
from coterie.spec import BankKey, ExpertKey

TIMELINE_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineStep:
    """One step of a run.

    Attributes:
        step: Forward pass.
        requests: Experts asked for.
        hits: Of these, in memory by then.
        resident: Experts of each layer in memory when the step has ended, in the order of the timeline's layers.
    """

    step: int
    requests: int
    hits: int
    resident: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineLayer:
    """One bank of experts of a run.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
    """

    component: str
    layer: int
    bank: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A run, step by step, from an empty cache.

    Attributes:
        schema_version: Of this form.
        trace: Name of the file.
        model: Name of the model.
        policy: Name of the policy.
        capacity: Experts that fit.
        experts: Experts of the model.
        layers: The banks of experts, in order.
        hit_rate: Hits per request over the whole run.
        steps: In order.
    """

    schema_version: int = TIMELINE_SCHEMA_VERSION
    trace: str
    model: str
    policy: str
    capacity: int
    experts: int
    layers: tuple[TimelineLayer, ...]
    hit_rate: float
    steps: tuple[TimelineStep, ...]


def timeline(trace: RecordedTrace, capacity: int, policy: str) -> Timeline:
    """Replays a trace through a policy, as :func:`coterie.eviction.simulate` does, and notes what each step finds.

    Args:
        trace: The run.
        capacity: Experts that fit, in all layers together.
        policy: Name.

    Raises:
        UsageError: For an unknown policy, or a capacity below one expert.
    """
    banks = sorted({key.bank_key for group in trace.groups for key in group.keys})
    watched = _Watcher(banks, trace)
    outcome = simulate(trace.groups, capacity, policy, watch=watched)
    return Timeline(
        trace=trace.name,
        model=trace.model,
        policy=policy,
        capacity=capacity,
        experts=trace.experts,
        layers=tuple(TimelineLayer(**bank._asdict()) for bank in banks),
        hit_rate=outcome.hit_rate,
        steps=tuple(watched.steps),
    )


class _Watcher:
    """Adds up the groups of each step."""

    def __init__(self, banks: list[BankKey], trace: RecordedTrace) -> None:
        places = {bank: index for index, bank in enumerate(banks)}
        self._layers = len(banks)
        self._place = {key: places[key.bank_key] for group in trace.groups for key in group.keys}
        # A step ends where the next group is of another one.
        steps = [group.step for group in trace.groups]
        self._ends = [here != there for here, there in zip(steps, [*steps[1:], None], strict=True)]
        self._groups = self._requests = self._hits = 0
        self.steps: list[TimelineStep] = []

    def __call__(self, group: Group[ExpertKey], hits: int, resident: Mapping[ExpertKey, int]) -> None:
        self._requests += len(group.keys)
        self._hits += hits
        if self._ends[self._groups]:
            counts = [0] * self._layers
            for key in resident:
                counts[self._place[key]] += 1
            self.steps.append(
                TimelineStep(step=group.step, requests=self._requests, hits=self._hits, resident=tuple(counts))
            )
            self._requests = self._hits = 0
        self._groups += 1
