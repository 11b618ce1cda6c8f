"""The codes of a matrix for what it is multiplied with, and how much better they are than rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.errors import UnsupportedError
from coterie.quant.calibrated.descent import descend
from coterie.quant.calibrated.errors import MatrixError, output_errors, squares
from coterie.quant.calibrated.gptq import gptq
from coterie.quant.calibrated.refit import refit
from coterie.quant.codes import Codes
from coterie.quant.scheme import Parts, Scheme

PRIOR_ROWS = 200
"""Rows' worth of the layer's mean that every expert's Hessian gets: an expert that saw few rows, or rows of one kind,
is calibrated for those of others as well."""

_DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it, as in GPTQ."""

_TURNS = 2
"""Times that scales are fitted and codes are improved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A matrix in a scheme.

    Attributes:
        parts: The tensors that the scheme's form describes.
        error: What they are off by.
    """

    parts: Parts
    error: MatrixError


def shrunk(own_KK: torch.Tensor, mean_KK: torch.Tensor) -> torch.Tensor:
    """An expert's Hessian, shrunk towards that of its layer.

    Args:
        own_KK: Sum of ``x xᵀ`` over the rows x that the expert was given; 0 if there were none.
        mean_KK: Mean of ``x xᵀ`` over the rows of all experts of the layer.
    """
    return own_KK + PRIOR_ROWS * mean_KK


def choose_codes(scheme: Scheme, weights: torch.Tensor, hessian_KK: torch.Tensor) -> Chosen:
    """Chooses the codes of a matrix for the least squared error of what it computes.

    GPTQ first, then by turns the scales and zeros that fit the codes best, and a sweep of coordinate descent over the
    codes. Of each row the better is kept, this or rounding to nearest: no row's error is larger than by that.

    Args:
        scheme: How the matrix is stored.
        weights: [N, K] of a floating dtype, finite.
        hessian_KK: float32, symmetric, positive semidefinite: the sum of ``x xᵀ`` over rows x that it is multiplied
            with. If it is 0 everywhere, every weight counts alike.

    Raises:
        UnsupportedError: If the scheme's codes cannot be chosen by calibration.
        QuantisationError: If a weight or the Hessian is not finite.
    """
    if scheme.grid is None:
        raise UnsupportedError(
            f"Codes of {scheme.name} cannot be chosen by calibration.",
            advice="Quantise without it.",
            scheme=scheme.name,
        )
    nearest = scheme.unpacked(scheme.quantise(weights), weights.shape[1])
    weights_KN = weights.float().t().contiguous()
    energy = float(hessian_KK.diagonal().mean(dtype=torch.float64))
    if energy == 0:
        hessian_KK, energy = torch.eye(len(hessian_KK)), 1.0
    damped_KK = hessian_KK / energy
    damped_KK.diagonal().add_(_DAMPING)
    target_KN = damped_KK @ weights_KN
    tried = [(nearest, output_errors(nearest.weights_KN() - weights_KN, damped_KK))]
    codes = gptq(scheme, weights_KN, damped_KK)
    for _ in range(_TURNS):
        codes = refit(codes, target_KN, damped_KK, scheme.grid)
        codes, errors = descend(codes, weights_KN, damped_KK, scheme.grid)
        tried.append((codes, errors))
    found = [(codes, _undamped(codes, weights_KN, errors, energy)) for codes, errors in tried]
    best, output, nearest_output = _best_rows(found)
    scale = squares(weights_KN)
    return Chosen(
        parts=scheme.packed(best),
        error=MatrixError(
            output=output,
            nearest_output=nearest_output,
            output_scale=energy * (float((weights_KN * target_KN).sum(dtype=torch.float64)) - _DAMPING * scale),
            weight=squares(best.weights_KN() - weights_KN),
            weight_scale=scale,
        ),
    )


def _undamped(codes: Codes, weights_KN: torch.Tensor, errors_N: torch.Tensor, energy: float) -> torch.Tensor:
    """The squared error of each row's output by the Hessian as it was, from that by the damped one."""
    off_N = (codes.weights_KN() - weights_KN).square().sum(0, dtype=torch.float64)
    return (energy * (errors_N - _DAMPING * off_N)).clamp_(min=0)


def _best_rows(tried: list[tuple[Codes, torch.Tensor]]) -> tuple[Codes, float, float]:
    """Each row from where its error is least; its error, and that of the first that was tried."""
    (best, first_N), *others = tried
    least_N = first_N
    for codes, errors_N in others:
        better_N = errors_N < least_N
        least_N = torch.where(better_N, errors_N, least_N)
        best = Codes(
            codes_KN=torch.where(better_N, codes.codes_KN, best.codes_KN),
            scales_GN=torch.where(better_N, codes.scales_GN, best.scales_GN),
            zeros_GN=torch.where(better_N, codes.zeros_GN, best.zeros_GN),
            group=best.group,
        )
    return best, float(least_N.sum()), float(first_N.sum())
