"""Coordinate descent: each code in turn becomes the best one while all others stay.

Along one code the squared error of the output is a parabola, so the best code is the one nearest to its lowest point.
The error never grows. (Behdin et al. 2023, QuantEase, https://arxiv.org/abs/2309.01885.)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from coterie.quant.codes import Codes, Grid

_BLOCK = 128
"""Columns whose effect on the others is added up before it is applied to them."""

_NEAR = 16
"""Of these, so many are told of each other's effect at once."""


def descend(codes: Codes, weights_KN: torch.Tensor, hessian_KK: torch.Tensor, grid: Grid) -> tuple[Codes, torch.Tensor]:
    """One sweep over all columns; scales and zeros stay.

    Args:
        codes: To begin from.
        weights_KN: What they are to stand for, float32.
        hessian_KK: float32, symmetric, with a positive diagonal.
        grid: That of the scheme.

    Returns:
        The codes, and the squared error of each row's output, float64 [N].
    """
    columns = len(weights_KN)
    scales_KN, zeros_KN = codes.spread(codes.scales_GN), codes.spread(codes.zeros_GN)
    inverses_KN = torch.where(scales_KN == 0, torch.zeros_like(scales_KN), 1 / scales_KN)
    codes_KN = codes.codes_KN.clone()
    # Half the gradient of the squared error by each weight.
    slope_KN = hessian_KK @ (codes_KN * scales_KN + zeros_KN - weights_KN)
    inverse_diagonal = (-1 / hessian_KK.diagonal()).tolist()
    steps_KN = torch.empty_like(weights_KN)
    for first in range(0, columns, _BLOCK):
        end = min(first + _BLOCK, columns)
        for near in range(first, end, _NEAR):
            last = min(near + _NEAR, end)
            for column in range(near, last):
                code_N = codes_KN[column]
                # In steps of the scale, from the code that is there.
                new_N = torch.addcmul(code_N, slope_KN[column], inverses_KN[column], value=inverse_diagonal[column])
                new_N.round_().clamp_(grid.lowest, grid.highest)
                torch.mul(new_N - code_N, scales_KN[column], out=steps_KN[column])
                codes_KN[column] = new_N
                slope_KN[near:last].addr_(hessian_KK[near:last, column], steps_KN[column])
            for rest in (slice(first, near), slice(last, end)):
                slope_KN[rest].addmm_(hessian_KK[rest, near:last], steps_KN[near:last])
        for rest in (slice(0, first), slice(end, columns)):
            slope_KN[rest].addmm_(hessian_KK[rest, first:end], steps_KN[first:end])
    found = replace(codes, codes_KN=codes_KN)
    return found, ((found.weights_KN() - weights_KN) * slope_KN).sum(0, dtype=torch.float64)
