"""What a report consists of, as frozen values: answers, the figures behind them, and whether these replicate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coterie.profiles import Estimate
from coterie.profiles.inference import LEVEL, Floats, special_functions

REPORT_SCHEMA_VERSION = 1

Verdict = Literal["holds in both halves", "does not replicate", "not shown", "too little data", "not halved"]
"""Of the whole and of each half by itself; of the whole only; not even of the whole; nothing can be said; told without
halves, because what it rests on is not kept by segment."""
Unit = Literal["bits", "%", "experts", "heads", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A figure, what it is compared with, and what becomes of it in each half of the data.

    Attributes:
        name: What it is.
        unit: ``bits``, ``%`` (the value is a fraction), ``experts``, ``heads``, or nothing.
        value: The figure; None if it cannot be computed.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        chance: What it must be above, such as the noise floor or chance level; None if it only describes.
        first: The figure of the first half.
        second: Of the second half.
        tokens: Tokens behind it.
        verdict: Whether it holds.
    """

    name: str
    unit: Unit
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    first: float | None
    second: float | None
    tokens: int
    verdict: Verdict

    @property
    def holds(self) -> bool:
        """Whether it holds in both halves."""
        return self.verdict == "holds in both halves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures in detail.

    Attributes:
        title: What they are.
        columns: Headings.
        rows: Cells, as they are shown.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture beside an answer.

    Attributes:
        name: Of its file.
        title: What it shows.
    """

    name: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question, and what the data say.

    Attributes:
        key: Short name of the question.
        question: In words.
        answer: One sentence.
        claims: The figures that it rests on.
        tables: Details.
        pictures: Likewise.
        notes: How to read them.
    """

    key: str
    question: str
    answer: str
    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a profile says about a model.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        model_class: transformers class.
        identity: Fingerprint.
        component: The part of the model.
        banks: Banks of experts, mostly one a layer.
        experts: Experts in all.
        tokens: Tokens of the profile.
        modalities: Name → tokens.
        domains: Name → tokens.
        recorded: When each run began.
        trial_tokens: Tokens of the short run of the model; 0 without one.
        answers: In the order of the page.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    model: str
    model_class: str
    identity: str
    component: str
    banks: int
    experts: int
    tokens: int
    modalities: dict[str, int]
    domains: dict[str, int]
    recorded: tuple[str, ...]
    trial_tokens: int
    answers: tuple[Answer, ...]

    def __getitem__(self, key: str) -> Answer:
        """The answer of a key."""
        return next(answer for answer in self.answers if answer.key == key)


def estimate_windows(values: Floats) -> Estimate:
    """An estimate from a figure of each window."""
    if not len(values):
        return Estimate(value=None, low=None, high=None, first=None, second=None)
    half = len(values) // 2
    value, low, high = float(values.mean()), None, None
    if half >= 2:
        error = values.std(ddof=1) / np.sqrt(len(values))
        reach = float(special_functions().stdtrit(len(values) - 1, 1 - (1 - LEVEL) / 2) * error)
        low, high = value - reach, value + reach
    first, second = (float(part.mean()) if half else None for part in (values[:half], values[half:]))
    return Estimate(value=value, low=low, high=high, first=first, second=second)


def claim_above(
    name: str, found: Estimate, chance: Sequence[float | None], *, tokens: int, unit: Unit = "", two_sided: bool = False
) -> Claim:
    """A claim that a figure is above what chance gives.

    Args:
        name: Of the figure.
        found: The figure.
        chance: What it is compared with: of the whole, of the first half, of the second.
        tokens: Behind it.
        unit: Of the figure.
        two_sided: Being below, in the whole and in both halves, is a finding, too.
    """
    verdict: Verdict = "too little data"
    whole, *halves = chance
    if found.low is not None and found.high is not None and whole is not None:
        sides = [1] + [-1] * two_sided
        shown = [side for side in sides if side * ((found.low if side > 0 else found.high) - whole) > 0]
        parts = [(value, other) for value, other in zip((found.first, found.second), halves, strict=True)]
        if not shown:
            verdict = "not shown"
        elif all(v is not None and c is not None and shown[0] * (v - c) > 0 for v, c in parts):
            verdict = "holds in both halves"
        else:
            verdict = "does not replicate"
    return _claim(name, unit, found, whole, tokens, verdict)


def claim_described(name: str, found: Estimate, *, tokens: int, unit: Unit = "") -> Claim:
    """A figure that only describes; it holds if the halves are as much alike as its error lets expect."""
    alike = found.alike
    verdicts: dict[bool | None, Verdict] = {True: "holds in both halves", False: "does not replicate"}
    return _claim(name, unit, found, None, tokens, verdicts.get(alike, "too little data"))


def claim_counted(name: str, value: float, *, tokens: int, unit: Unit, chance: float | None = None) -> Claim:
    """A number of findings each of which had to show in both halves by itself."""
    found = Estimate(value=value, low=None, high=None, first=None, second=None)
    return _claim(name, unit, found, chance, tokens, "holds in both halves" if value else "not shown")


def claim_whole(name: str, value: float | None, *, tokens: int, unit: Unit, chance: float | None = None) -> Claim:
    """A figure of what is not kept by segment."""
    found = Estimate(value=value, low=None, high=None, first=None, second=None)
    return _claim(name, unit, found, chance, tokens, "too little data" if value is None else "not halved")


def _claim(name: str, unit: Unit, found: Estimate, chance: float | None, tokens: int, verdict: Verdict) -> Claim:
    return Claim(
        name=name,
        unit=unit,
        value=found.value,
        low=found.low,
        high=found.high,
        chance=chance,
        first=found.first,
        second=found.second,
        tokens=tokens,
        verdict=verdict,
    )


def shown(value: float | None, unit: Unit = "") -> str:
    """A figure for people. What rounds to zero has no sign (``z``)."""
    if value is None:
        return "–"
    if unit == "%":
        return f"{100 * value:z.1f} %"
    if unit in ("experts", "heads"):
        return f"{value:z.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{value:z.3f}" + (f" {unit}" if unit else "")
