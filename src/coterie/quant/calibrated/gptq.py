"""GPTQ: column after column is rounded, and the columns to come make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh 2022, https://arxiv.org/abs/2210.17323. The scale and zero of a group are chosen
when its turn comes, for what its weights have become by then.
"""

from __future__ import annotations

import torch

from coterie.errors import QuantisationError
from coterie.quant.codes import Codes
from coterie.quant.scheme import Scheme
from coterie.spec.encodings import group_size


def gptq(scheme: Scheme, weights_KN: torch.Tensor, hessian_KK: torch.Tensor) -> Codes:
    """Codes of a matrix for what it is multiplied with.

    Args:
        scheme: With a grid.
        weights_KN: float32, transposed: columns first.
        hessian_KK: float32, symmetric and positive definite.

    Raises:
        QuantisationError: If the weights do not fit the scheme, or the Hessian is not positive definite.
    """
    grid = scheme.grid
    assert grid is not None, "checked by whoever chooses the scheme"
    factor_KK = _inverse_factor(hessian_KK)
    columns = len(weights_KN)
    work_KN = weights_KN.clone()
    codes_KN = torch.empty_like(work_KN)
    scales, zeros = [], []
    for first in range(0, columns, group_size(columns)):
        end = min(first + group_size(columns), columns)
        block = work_KN[first:end]
        found = scheme.unpacked(scheme.quantise(block.t()), end - first)
        (scale_N,), (zero_N,) = found.scales_GN, found.zeros_GN
        inverse_N = torch.where(scale_N == 0, torch.zeros_like(scale_N), 1 / scale_N)
        scales.append(scale_N)
        zeros.append(zero_N)
        errors = torch.empty_like(block)
        for column in range(first, end):
            row_N = block[column - first]
            code_N = torch.mul(row_N - zero_N, inverse_N, out=codes_KN[column])
            code_N.round_().clamp_(grid.lowest, grid.highest)
            error_N = errors[column - first]
            torch.sub(row_N, code_N * scale_N + zero_N, out=error_N).div_(factor_KK[column, column])
            block[column - first + 1 :].addr_(factor_KK[column, column + 1 : end], error_N, alpha=-1)
        work_KN[end:].addmm_(factor_KK[first:end, end:].t(), errors, alpha=-1)
    return Codes(codes_KN=codes_KN, scales_GN=torch.stack(scales), zeros_GN=torch.stack(zeros))


def _inverse_factor(hessian_KK: torch.Tensor) -> torch.Tensor:
    """U, upper triangular, with ``Uᵀ U`` the inverse of the Hessian; float32."""
    # In float64: a layer's inputs lie close to few directions.
    lower, problem = torch.linalg.cholesky_ex(hessian_KK.double())
    if int(problem):
        raise QuantisationError(
            "What the experts are given cannot be used for calibration: its second moments are not positive definite.",
            advice="An activation is infinite or not a number; look at the calibration texts.",
        )
    inverse = torch.cholesky_inverse(lower)
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()
