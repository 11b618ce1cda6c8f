"""What a curve is made of, as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.curves.settings import ChosenBy, Setting
from coterie.errors import InputError
from coterie.evaluate import Estimate, ModelFacts, Quality, Reads
from coterie.evaluate.confidence import LEVEL
from coterie.files.json_text import JsonLimits, parse_json
from coterie.files.plain_values import from_plain, to_plain
from coterie.files.regular import read_bounded

CURVE_SCHEMA_VERSION = 1

_FILE = JsonLimits(nbytes=256 << 20, depth=16, values=16_000_000)
"""A set of a model of tens of thousands of experts has as many numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A model that differs from the full one in one way, and what that costs.

    Attributes:
        setting: In which way.
        experts: Experts that are there.
        total_experts: Experts that the model has.
        expert_nbytes: Bytes of the records of those that are there.
        bits: Bits per weight of these experts, scales included.
        token_nbytes: Bytes of the experts that one token uses, over all layers: what is read for it if none is in
            memory.
        gate_mass: Share of the gate weights of the profile's text that goes to experts that are there, mean over
            layers; None without a profile, or where all are there.
        reads: What was read, where tokens were computed one by one.
        total: The figures of all texts together, compared with the full model.
        texts: Those of each text, by the names that were given to them.
    """

    setting: Setting
    experts: int
    total_experts: int
    expert_nbytes: int
    bits: float
    token_nbytes: int
    gate_mass: float | None = None
    reads: Reads | None = None
    total: Quality
    texts: tuple[Quality, ...]

    @property
    def kld(self) -> Estimate:
        """Mean KL(full ‖ this), in nats per token, paired token by token."""
        assert self.total.comparison is not None, "every point is compared"
        return self.total.comparison.kld

    def to_json(self) -> dict[str, Any]:
        """Plain values, as of :meth:`Curve.to_json`."""
        plain: dict[str, Any] = to_plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CurvePoint:
        """What :meth:`to_json` made.

        Raises:
            ValueError: If it is anything else.
        """
        point: CurvePoint = from_plain(cls, value)
        return point


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestSet:
    """The fewest experts that keep a domain's divergence below a bound, along a ranking.

    The ranking is of all the model's experts by what the domain's tokens need, and every layer has at least as many as
    a token uses. Divergence need not fall with every expert that is added: the search takes it that it does.

    Attributes:
        domain: The domain: the text of this name is the one that was predicted.
        bound: The divergence, in nats per token.
        by: What experts are ranked by.
        missing: What is done about absent ones.
        experts: How many there are.
        total_experts: How many the model has.
        kld: The divergence with them.
        expert_nbytes: Bytes of their records.
        gate_mass: Share of the gate weights of the profile's text of the domain that goes to them, mean over layers.
        chosen: Bank → their ids.
        evaluations: How many numbers of experts were tried.
    """

    domain: str
    bound: float
    by: ChosenBy
    missing: str
    experts: int
    total_experts: int
    kld: Estimate
    expert_nbytes: int
    gate_mass: float
    chosen: Mapping[str, tuple[int, ...]]
    evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExperts:
    """Which experts several domains need, of their smallest sets at one bound.

    Attributes:
        bound: The divergence, in nats per token.
        by: What experts are ranked by.
        domains: The domains.
        core: Experts that are in all of the sets.
        several: In more than one, and not in all.
        only: Domain → experts that are in its set alone.
        none: Experts that are in no set.
        layers: Bank → experts of it in all sets.
    """

    bound: float
    by: ChosenBy
    domains: tuple[str, ...]
    core: int
    several: int
    only: Mapping[str, int]
    none: int
    layers: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points, and what was searched.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: The model that was varied.
        against: The full model that points are compared with.
        context: Input tokens of a window.
        stride: Predictions of a window.
        limit: The most predictions of each text, or None.
        texts: Name → path of each text.
        level: Confidence level of the intervals.
        points: The points, axis by axis.
        smallest: The smallest sets of experts, domain by domain.
        shared: What the sets have in common, for each bound that was searched for several domains.
    """

    schema_version: int = CURVE_SCHEMA_VERSION
    model: ModelFacts
    against: ModelFacts
    context: int
    stride: int
    limit: int | None
    texts: Mapping[str, str]
    level: float = LEVEL
    points: tuple[CurvePoint, ...]
    smallest: tuple[SmallestSet, ...] = ()
    shared: tuple[SharedExperts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values. What is infinite is the text ``"inf"`` (or ``"-inf"``), since JSON has no such number."""
        plain: dict[str, Any] = to_plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """What :meth:`to_json` made.

        Raises:
            ValueError: If it is anything else.
        """
        curve: Curve = from_plain(cls, value)
        return curve


def read_curve(path: str | Path) -> Curve:
    """A curve that ``coterie curve --output`` wrote.

    Raises:
        InputError: If it cannot be read, or is no curve.
    """
    try:
        return Curve.from_json(parse_json(read_bounded(path, _FILE.nbytes), _FILE))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
    except ValueError as error:
        raise InputError(
            f"{path} is no curve: {error}.", advice="Name what `coterie curve --output FILE` wrote.", path=path
        ) from error
