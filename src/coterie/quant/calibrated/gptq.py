"""GPTQ: column after column is rounded, and the columns to come make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh 2022, https://arxiv.org/abs/2210.17323. The scale and zero of a group are chosen
when its turn comes, for what its weights have become by then.

The paper takes the Cholesky factor of the Hessian's inverse. Here the Hessian itself is factored, ``H = M Mᵀ`` with M
upper triangular. The paper's factor is the inverse of M, and is needed for one group of columns at a time only: that
block of it is the inverse of M's block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.linalg import solve_triangular

from coterie.errors import QuantisationError
from coterie.quant.codes import Codes
from coterie.quant.scheme import Scheme

_NEAR = 16
"""Columns that are told of an error at once; those after them are told of the errors of so many together."""


def gptq(scheme: Scheme, weights_KN: torch.Tensor, hessian_KK: torch.Tensor) -> Codes:
    """Codes of a matrix for what it is multiplied with.

    Args:
        scheme: With a grid.
        weights_KN: float32, transposed: columns first.
        hessian_KK: float32, symmetric and positive definite.

    Raises:
        QuantisationError: If the weights do not fit the scheme, or the Hessian is not positive definite.
    """
    factor_KK = _factor(hessian_KK)
    columns = len(weights_KN)
    codes_KN = torch.empty_like(weights_KN)
    # Mᵀ times what the columns before are off by.
    owed_KN = torch.zeros_like(weights_KN)
    scales, zeros = [], []
    size = scheme.form.group_size(columns)
    for first in range(0, columns, size):
        group = slice(first, min(first + size, columns))
        block_SS = factor_KK[group, group]
        # Where the error of the columns before is least if these columns may have any value.
        wanted_SN = weights_KN[group] + solve_triangular(block_SS.t(), owed_KN[group], upper=False)
        inverse_SS = solve_triangular(block_SS, torch.eye(len(block_SS)), upper=True)
        found = _round_group(scheme, wanted_SN, inverse_SS)
        codes_KN[group] = found.codes_KN
        scales.append(found.scales_GN[0])
        zeros.append(found.zeros_GN[0])
        rest = slice(group.stop, columns)
        owed_KN[rest].addmm_(factor_KK[group, rest].t(), weights_KN[group] - found.weights_KN())
    return Codes(codes_KN=codes_KN, scales_GN=torch.stack(scales), zeros_GN=torch.stack(zeros), group=size)


def _round_group(scheme: Scheme, wanted_SN: torch.Tensor, factor_SS: torch.Tensor) -> Codes:
    """Rounds the columns of a group, one after the other; changes ``wanted_SN``.

    Args:
        scheme: With a grid.
        wanted_SN: The columns.
        factor_SS: The group's block of the paper's factor.
    """
    grid = scheme.grid
    assert grid is not None, "checked by whoever chooses the scheme"
    columns = len(wanted_SN)
    found = scheme.unpacked(scheme.quantise(wanted_SN.t()), columns)
    (scale_N,), (zero_N,) = found.scales_GN, found.zeros_GN
    inverse_N = torch.where(scale_N == 0, torch.zeros_like(scale_N), 1 / scale_N)
    codes_SN, errors_SN = torch.empty_like(wanted_SN), torch.empty_like(wanted_SN)
    diagonal = factor_SS.diagonal().tolist()
    for first in range(0, columns, _NEAR):
        end = min(first + _NEAR, columns)
        for column in range(first, end):
            row_N, code_N, error_N = wanted_SN[column], codes_SN[column], errors_SN[column]
            torch.sub(row_N, zero_N, out=code_N).mul_(inverse_N).round_().clamp_(grid.lowest, grid.highest)
            torch.sub(row_N, torch.addcmul(zero_N, code_N, scale_N), out=error_N).div_(diagonal[column])
            wanted_SN[column + 1 : end].addr_(factor_SS[column, column + 1 : end], error_N, alpha=-1)
        wanted_SN[end:].addmm_(factor_SS[first:end, end:].t(), errors_SN[first:end], alpha=-1)
    return replace(found, codes_KN=codes_SN)


def _factor(hessian_KK: torch.Tensor) -> torch.Tensor:
    """M, upper triangular, with ``M Mᵀ`` the Hessian; float32."""
    # In float64: a layer's inputs lie close to few directions. Reversed, M is the lower factor.
    lower, problem = torch.linalg.cholesky_ex(hessian_KK.flip(0, 1).double())
    if int(problem):
        raise QuantisationError(
            "What the experts are given cannot be used for calibration: its second moments are not positive definite.",
            advice="An activation is infinite or not a number; look at the calibration texts.",
        )
    factor: torch.Tensor = lower.float().flip(0, 1)
    return factor
