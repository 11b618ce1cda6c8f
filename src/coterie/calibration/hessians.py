"""Second moments of what the matrices of a bank's experts are multiplied with: H, the sum of ``x xᵀ`` over rows x."""

from __future__ import annotations

from collections.abc import Collection

import torch

from coterie.quant.calibrated import shrunk
from coterie.spec import ExpertKey


class Hessians:
    """Those of some experts of a bank, and the means over all of its experts.

    Args:
        experts: Whose own are kept.
        means: Means that are known already, by parameter, with the rows that they are of; empty to add them up.
    """

    def __init__(self, experts: Collection[int], means: dict[str, tuple[torch.Tensor, int]]) -> None:
        self._experts = frozenset(experts)
        self._own: dict[tuple[int, str], torch.Tensor] = {}
        self._adds_up = not means
        self.sums = means

    def add(self, key: ExpertKey, parameter: str, rows: torch.Tensor) -> None:
        """Rows that a matrix is multiplied with, [..., K]."""
        wanted = key.expert in self._experts
        if not wanted and not self._adds_up:
            return
        rows_RK = rows.reshape(-1, rows.shape[-1]).float()
        # Some classes multiply every expert with every token, those that did not choose it as rows of zeros.
        rows_RK = rows_RK[rows_RK.any(dim=1)]
        if not len(rows_RK):
            return
        # By itself, whoever needs it: the same sums, rounded alike, for however many experts at once there is memory.
        product_KK = rows_RK.t() @ rows_RK
        if wanted:
            own = self._own.get((key.expert, parameter))
            if own is None:
                self._own[key.expert, parameter] = product_KK.clone() if self._adds_up else product_KK
            else:
                own += product_KK
        if self._adds_up:
            total, count = self.sums.get(parameter, (torch.zeros_like(product_KK), 0))
            total += product_KK
            self.sums[parameter] = total, count + len(rows_RK)

    def of(self, expert: int, parameter: str) -> torch.Tensor | None:
        """That of a matrix, shrunk towards the mean of its layer; None if no expert was given anything."""
        if parameter not in self.sums:
            return None
        total, count = self.sums[parameter]
        own = self._own.get((expert, parameter))
        return shrunk(torch.zeros_like(total) if own is None else own, total / count)

    def forget(self, expert: int) -> None:
        """Lets go of an expert's own."""
        for place in [place for place in self._own if place[0] == expert]:
            del self._own[place]
