"""Coordinate descent: each code in turn becomes the best one while all others stay.

Along one code the squared error of the output is a parabola, so the best code is the one nearest to its lowest point.
The error never grows. (Behdin et al. 2023, QuantEase, https://arxiv.org/abs/2309.01885.)
"""

from __future__ import annotations

import torch

from coterie.quant.codes import Codes, Grid, spread

_BLOCK = 64
"""Columns whose effect on the others is added up before it is applied to them."""


def descend(codes: Codes, weights_KN: torch.Tensor, hessian_KK: torch.Tensor, grid: Grid) -> Codes:
    """One sweep over all columns; scales and zeros stay.

    Args:
        codes: To begin from.
        weights_KN: What they are to stand for, float32.
        hessian_KK: float32, symmetric, with a positive diagonal.
        grid: That of the scheme.
    """
    columns = len(weights_KN)
    scales_KN, zeros_KN = spread(codes.scales_GN, columns), spread(codes.zeros_GN, columns)
    inverses_KN = torch.where(scales_KN == 0, torch.zeros_like(scales_KN), 1 / scales_KN)
    codes_KN = codes.codes_KN.clone()
    # Half the gradient of the squared error by each weight.
    slope_KN = hessian_KK @ (codes_KN * scales_KN + zeros_KN - weights_KN)
    diagonal = hessian_KK.diagonal().tolist()
    for first in range(0, columns, _BLOCK):
        end = min(first + _BLOCK, columns)
        steps = torch.empty_like(weights_KN[first:end])
        slope, hessian = slope_KN[first:end], hessian_KK[first:end, first:end].contiguous()
        for column in range(first, end):
            at = column - first
            code_N = codes_KN[column]
            # In steps of the scale, from the code that is there.
            new_N = torch.addcmul(code_N, slope[at], inverses_KN[column], value=-1 / diagonal[column])
            new_N.round_().clamp_(grid.lowest, grid.highest)
            torch.mul(new_N - code_N, scales_KN[column], out=steps[at])
            codes_KN[column] = new_N
            slope.addr_(hessian[at], steps[at])
        for rest in (slice(0, first), slice(end, columns)):
            slope_KN[rest].addmm_(hessian_KK[rest, first:end], steps)
    return Codes(codes_KN=codes_KN, scales_GN=codes.scales_GN, zeros_GN=codes.zeros_GN)
