"""The scales and zeros with the least squared error of the output, for codes that are given.

Each row of a matrix is a linear regression of its own: its weights, seen through what they are multiplied with, against
the codes of each group and, with zeros, a constant for each group.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from coterie.quant.codes import Codes, Grid

_ROWS = 64
"""Rows that are fitted at once: their products with the Hessian are in memory for every group."""

_RIDGE = 1e-6
"""Share of the diagonal that keeps a group where it is if all of its codes are equal."""


def refit(codes: Codes, target_KN: torch.Tensor, hessian_KK: torch.Tensor, grid: Grid) -> Codes:
    """The same codes with better scales, and zeros where the scheme has them, each rounded to bfloat16.

    Args:
        codes: With the scales and zeros to begin from.
        target_KN: The Hessian times the weights that they are to stand for, float32: what rows are correlated with.
        hessian_KK: float32, symmetric and positive definite.
        grid: That of the scheme.
    """
    columns, size = len(target_KN), codes.group
    groups = len(codes.scales_GN)
    # A shorter group at the end is filled up: columns that are multiplied with nothing change nothing.
    extra = groups * size - columns
    hessian = pad(hessian_KK, (0, extra, 0, extra)).view(groups, size, groups * size)
    codes_NGS = pad(codes.codes_KN.t(), (0, extra)).reshape(-1, groups, size)
    target_NGS = pad(target_KN.t(), (0, extra)).reshape(-1, groups, size)
    of_zeros_GG = hessian.view(groups, size, groups, size).sum((1, 3), dtype=torch.float64)
    scales, zeros = [], []
    for first in range(0, len(codes_NGS), _ROWS):
        rows = slice(first, first + _ROWS)
        fitted = _Rows(hessian, of_zeros_GG, codes_NGS[rows], target_NGS[rows])
        scale_RG, zero_RG = fitted.fit(codes.scales_GN[:, rows].t(), codes.zeros_GN[:, rows].t(), grid)
        scales.append(scale_RG)
        zeros.append(zero_RG)
    return replace(codes, scales_GN=torch.cat(scales).t().contiguous(), zeros_GN=torch.cat(zeros).t().contiguous())


class _Rows:
    """The normal equations of some rows, R of them, in float64.

    Args:
        hessian: [G, S, G · S].
        of_zeros_GG: Its sums over pairs of groups: the equations of zeros alone, the same for every row.
        codes_RGS: The codes.
        target_RGS: The Hessian times the weights.
    """

    def __init__(
        self, hessian: torch.Tensor, of_zeros_GG: torch.Tensor, codes_RGS: torch.Tensor, target_RGS: torch.Tensor
    ) -> None:
        rows, groups, size = codes_RGS.shape
        products = torch.bmm(codes_RGS.transpose(0, 1), hessian).view(groups, rows * groups, size)
        # With the codes of the other group, and with its ones: both while a product is at hand.
        others = torch.stack([codes_RGS, torch.ones_like(codes_RGS)], dim=-1).view(rows * groups, size, 2)
        both = torch.bmm(products.transpose(0, 1), others).view(rows, groups, groups, 2).double()
        self._of_scales_RGG, self._mixed_RGG = both[..., 0].mT, both[..., 1].mT
        self._of_zeros_GG = of_zeros_GG
        self._scale_target_RG = (codes_RGS * target_RGS).sum(-1, dtype=torch.float64)
        self._zero_target_RG = target_RGS.sum(-1, dtype=torch.float64)

    def fit(self, scale_RG: torch.Tensor, zero_RG: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Better scales and zeros than these; where there are none, these."""
        before = scale_RG.double()
        if not grid.has_zeros:
            wanted = before + _solved(self._of_scales_RGG, self._scale_target_RG - _times(self._of_scales_RGG, before))
            return _rounded(wanted, scale_RG, positive=True), zero_RG
        groups = before.shape[1]
        whole = torch.cat(
            [
                torch.cat([self._of_scales_RGG, self._mixed_RGG], dim=2),
                torch.cat([self._mixed_RGG.mT, self._of_zeros_GG.expand_as(self._mixed_RGG)], dim=2),
            ],
            dim=1,
        )
        now = torch.cat([before, zero_RG.double()], dim=1)
        target = torch.cat([self._scale_target_RG, self._zero_target_RG], dim=1)
        wanted = now + _solved(whole, target - _times(whole, now))
        scale = _rounded(wanted[:, :groups], scale_RG, positive=True)
        # Zeros make up for the rounding of scales.
        left_RG = self._zero_target_RG - _times(self._mixed_RGG.mT, scale.double())
        ridged = self._of_zeros_GG + torch.diag(self._of_zeros_GG.diagonal() * _RIDGE)
        zero = torch.linalg.solve(ridged, left_RG.t()).t()
        return scale, _rounded(zero, zero_RG, positive=False)


def _times(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return torch.einsum("rij,rj->ri", matrices, vectors)


def _solved(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    # A group whose codes are all 0 has nothing on the diagonal either.
    ridge = torch.diag_embed(diagonal * _RIDGE + (diagonal <= 0))
    solved: torch.Tensor = torch.linalg.solve(matrices + ridge, vectors)
    return solved


def _rounded(wanted: torch.Tensor, before: torch.Tensor, *, positive: bool) -> torch.Tensor:
    """As bfloat16 stores it, in float32; what was there before, where that cannot be stored."""
    rounded = wanted.bfloat16().float()
    usable = rounded.isfinite() & ((rounded > 0) if positive else True)
    return torch.where(usable, rounded, before)
