"""The experts whose router rows are most like that of one expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.analysis.matrices import Floats
from coterie.analysis.rotation import directions


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An expert that is near another one.

    Attributes:
        expert_id: Its number.
        cosine: Of the two router rows.
        deviations: By how many standard deviations that is above the mean of all pairs of the layer.
    """

    expert_id: int
    cosine: float
    deviations: float


def nearest_experts(rows: Floats, expert: int, limit: int) -> tuple[Neighbour, ...]:
    """The experts whose rows have the largest cosine with one expert's, the largest first.

    Args:
        rows: [E, D].
        expert: Which.
        limit: How many at most.
    """
    unit = directions(rows)
    cosines = unit @ unit.T
    pairs = cosines[np.triu_indices(len(rows), 1)]
    spread = float(pairs.std())
    order = [other for other in np.argsort(-cosines[expert], kind="stable").tolist() if other != expert]
    return tuple(
        Neighbour(
            expert_id=other,
            cosine=float(cosines[expert, other]),
            deviations=float((cosines[expert, other] - pairs.mean()) / spread) if spread > 0 else 0.0,
        )
        for other in order[:limit]
    )
