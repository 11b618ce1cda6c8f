"""Forecasts of hits beside recorded routing of models: law, known model, profile, probe. Nothing is measured here.

A recording's windows are replayed by the policy of the cache, each from an empty cache. What a grade may know of the
recording, it is shown; what it is compared with, it is not:

- the *law* knows dimensions;
- a *known model* knows the first half of the recording, and is compared with windows of the second;
- a *profile* knows how often each expert was chosen in the first half, where that is enough tokens, likewise;
- a *probe* knows the tokens before the window.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import known_models
from coterie.eviction import Group, RecordedTrace, read_trace
from coterie.eviction.belady import compulsory
from coterie.planner import HitRate, Law
from coterie.planner.hit_rates import Grade
from coterie.planner.known_models import KnownModel
from coterie.planner.probe import PROBE_TOKENS, Probe
from coterie.planner.profiled import Domain, Profiled
from coterie.planner.ranges import Range
from coterie.profiles.importance import FEW_OBSERVATIONS
from coterie.spec import ExpertKey
from harness.report import Table

SHARES = (0.125, 0.25, 0.5)
FOLLOWING = 512
"""Tokens after a probe that it is compared with, at most."""
POLICY = "markov"

Window = list[Group[ExpertKey]]


@dataclass(frozen=True, kw_only=True)
class Forecasted:
    """A forecast, and the hit rate that came.

    Attributes:
        about: The recording, or the model.
        share: Of the experts that fits.
        forecast: What was said.
        measured: Hit rate.
    """

    about: str
    share: float
    forecast: HitRate
    measured: float

    @property
    def inside(self) -> bool:
        """Whether it lay in the range."""
        return self.measured in self.forecast.rate

    @property
    def off(self) -> float:
        """How far the likeliest hit rate was from the measured one, of that."""
        return abs(self.forecast.rate.expected - self.measured) / max(self.measured, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording and its dimensions."""

    name: str
    trace: RecordedTrace
    experts: int
    top_k: int

    @classmethod
    def read(cls, file: Path) -> Recording:
        """Reads one."""
        trace = read_trace(file)
        top_k = max(len(group.keys) for group in trace.groups)
        return cls(name=file.stem, trace=trace, experts=trace.experts // trace.layers, top_k=top_k)

    @property
    def law(self) -> Law:
        """The forecast from dimensions."""
        return Law(experts=self.experts, eviction=POLICY)

    def measured(self, window: Window, share: float) -> float:
        """Hit rate of a window, from an empty cache."""
        return 1 - known_models.miss_rate(window, self.trace.experts, share, POLICY)

    def steps(self, first: int, end: int) -> Window:
        """The groups of steps, counted from the recording's first."""
        start = self.trace.groups[0].step
        return [group for group in self.trace.groups if start + first <= group.step < start + end]

    @property
    def tokens(self) -> int:
        """How many were recorded."""
        return self.trace.groups[-1].step + 1 - self.trace.groups[0].step


def forecasts(folder: Path, *, windows: int) -> list[Forecasted]:
    """Of every recording in a folder; so many windows of each and grade, at most."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        recording = Recording.read(file)
        for grade in (_by_law, _by_known_model, _by_profile, _by_probe):
            found += grade(recording, windows)
    return found


def _by_law(recording: Recording, windows: int) -> Iterator[Forecasted]:
    cut = known_models.windows(recording.trace, known_models.WINDOW, windows)
    for window, share in itertools.product(cut, SHARES):
        forecast = recording.law.at(share, top_k=recording.top_k)
        yield _compared(recording, window, share, forecast)


def _by_known_model(recording: Recording, windows: int) -> Iterator[Forecasted]:
    half = recording.tokens // 2
    length = min(known_models.WINDOW, half)
    known = [recording.steps(first, first + length) for first in _starts(0, half - length, windows)]
    points = []
    for share in SHARES:
        rates = [1 - recording.measured(window, share) for window in known]
        points.append((share, Range(low=min(rates), expected=sum(rates) / len(rates), high=max(rates))))
    model = KnownModel(
        name=recording.name,
        experts=recording.experts,
        top_k=recording.top_k,
        eviction=POLICY,
        points=tuple(points),
        first_uses=sum(1 - compulsory(window, recording.trace.experts).hit_rate for window in known) / len(known),
    )
    for first in _starts(half, recording.tokens - length, windows):
        window = recording.steps(first, first + length)
        for share in SHARES:
            yield _compared(recording, window, share, model.at(share, top_k=recording.top_k))


def _by_profile(recording: Recording, windows: int) -> Iterator[Forecasted]:
    half = recording.tokens // 2
    length = min(known_models.WINDOW, half)
    used = Counter(key for group in recording.steps(0, half) for key in group.keys)
    if used.total() < FEW_OBSERVATIONS * recording.trace.experts:
        return
    counts = [*used.values(), *([0] * (recording.trace.experts - len(used)))]
    domain = Domain.of_rates(recording.name, half, np.array(counts, dtype=np.float64))
    known = Profiled(domains=(domain,), law=recording.law, top_k=recording.top_k)
    for first in _starts(half, recording.tokens - length, windows):
        window = recording.steps(first, first + length)
        for share in SHARES:
            yield _compared(recording, window, share, known.at(share, top_k=recording.top_k))


def _by_probe(recording: Recording, windows: int) -> Iterator[Forecasted]:
    tokens = min(PROBE_TOKENS, recording.tokens // 2)
    following = min(FOLLOWING, recording.tokens - tokens)
    for first in _starts(0, recording.tokens - tokens - following, windows):
        probe = Probe(
            groups=tuple(recording.steps(first, first + tokens)),
            tokens=tokens,
            experts=recording.trace.experts,
            law=recording.law,
            top_k=recording.top_k,
        )
        window = recording.steps(first + tokens, first + tokens + following)
        for share in SHARES:
            yield _compared(recording, window, share, probe.at(share, top_k=recording.top_k))


def _starts(first: int, last: int, most: int) -> list[int]:
    """Up to so many places, evenly from the first to the last; one where there is no room for two windows apart."""
    count = min(most, 1 + (last - first) // known_models.WINDOW)
    return np.linspace(first, last, count).round().astype(int).tolist() if count > 1 else [first]


def _compared(recording: Recording, window: Window, share: float, forecast: HitRate) -> Forecasted:
    return Forecasted(about=recording.name, share=share, forecast=forecast, measured=recording.measured(window, share))


def table(found: list[Forecasted]) -> Table:
    """By grade, recording and share, what was said and what came."""
    rows = Table(
        "Hit rates that were forecast, and those of recorded routing (policy `markov`, from an empty cache):",
        ("grade", "recording", "experts that fit", "forecast", "recorded", "windows", "inside", "off by, at most"),
    )

    def key(one: Forecasted) -> tuple[int, str, float]:
        return _GRADES.index(one.forecast.grade), one.about, one.share

    for (grade, about, share), each in itertools.groupby(sorted(found, key=key), key=key):
        group = list(each)
        said = [one.forecast.rate for one in group]
        came = [one.measured for one in group]
        rows.rows.append(
            (
                _GRADES[grade],
                about,
                f"{share:.1%}",
                f"{min(one.low for one in said):.0%} to {max(one.high for one in said):.0%}",
                f"{min(came):.0%} to {max(came):.0%}",
                str(len(group)),
                str(sum(one.inside for one in group)),
                f"{max(one.off for one in group):.0%}",
            )
        )
    return rows


_GRADES: tuple[Grade, ...] = ("law", "known model", "profile", "probe")
