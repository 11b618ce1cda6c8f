"""Models whose routing was recorded in public: what their experts' cache hits at every size.

``known_models.json`` is written by ``benchmarks/known_models.py``, which replays the recordings through the eviction
policies, from an empty cache.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from coterie.planner.hit_rates import NO_MISSES, HitRate, Law
from coterie.planner.ranges import Range
from coterie.planner.subject import Subject

TABLE = Path(__file__).with_name("known_models.json")
_FACTOR = 1.25
"""How far the miss rate of another text is from the range of those that were recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The forecast for a model whose routing was recorded.

    Attributes:
        name: Of the model.
        experts: Experts of a layer.
        top_k: Experts per token in the recording.
        eviction: The policy.
        points: Share of the experts that fits, with the miss rates of all windows of the recordings: the lowest, the
            mean, the highest. By rising share.
        first_uses: Of the experts asked for, those that were for the first time in a window. A longer text has fewer.
    """

    name: str
    experts: int
    top_k: int
    eviction: str
    points: tuple[tuple[float, Range], ...]
    first_uses: float = 0.0

    def at(self, share: float, *, top_k: float) -> HitRate:
        """See :class:`HitRates`. Another number of experts per token changes what was recorded as the law says."""
        found = interpolated(self.points, share)
        law = Law(experts=self.experts, eviction=self.eviction)
        recorded = law.miss(share, self.top_k)
        factor = law.miss(share, top_k) / recorded if recorded else 1.0
        miss = Range(
            low=max(0.0, found.low - self.first_uses) * factor / _FACTOR,
            expected=min(1.0, found.expected * factor),
            high=min(1.0, found.high * factor * _FACTOR),
        )
        return HitRate.of_miss(miss, grade="known model", basis=f"routing recorded from {self.name}")


def known_hit_rates(subject: Subject, eviction: str) -> KnownModel | None:
    """The forecast for a model that is in the table, and a policy that was replayed; None otherwise."""
    for one in _table()["models"]:
        dimensions = (subject.model_type, subject.layers, subject.experts)
        if dimensions == (one["model_type"], one["layers"], one["experts"]) and eviction in one["miss_rates"]:
            points = tuple(
                (point["share"], Range(low=point["low"], expected=point["mean"], high=point["high"]))
                for point in one["miss_rates"][eviction]
            )
            return KnownModel(
                name=one["name"],
                experts=one["experts"],
                top_k=one["top_k"],
                eviction=eviction,
                points=points,
                first_uses=one["first_uses"],
            )
    return None


def known_divergence(scheme: str, dense_scheme: str) -> float | None:
    """Mean KL divergence of the bundled model in such schemes, in nats per token; None if it was not measured."""
    for one in _table()["bundled_divergence"]:
        if (one["scheme"], one["dense_scheme"]) == (scheme, dense_scheme):
            return float(one["nats"])
    return None


def interpolated(points: Sequence[tuple[float, Range]], share: float) -> Range:
    """Between the nearest points; all misses where nothing fits, none where everything does."""
    every = Range(low=1.0, expected=1.0, high=1.0)
    line = [(0.0, every), *(point for point in points if 0 < point[0] < 1), (1.0, NO_MISSES)]
    for (left, below), (right, above) in itertools.pairwise(line):
        if share <= right:
            part = (share - left) / (right - left)
            return Range(
                low=below.low + part * (above.low - below.low),
                expected=below.expected + part * (above.expected - below.expected),
                high=below.high + part * (above.high - below.high),
            )
    return NO_MISSES


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
