"""How far codes are from the weights: by each weight, and by what they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixError:
    """Sums of squares of a matrix.

    H is the sum of ``x xᵀ`` over the rows x that a matrix W is multiplied with; Δ is what its codes are off by.

    Attributes:
        output: ``tr(Δ H Δᵀ)``, the squared error of what is computed.
        nearest_output: The same for codes rounded to nearest.
        output_scale: ``tr(W H Wᵀ)``.
        weight: ``tr(Δ Δᵀ)``, the squared error of the weights, whatever they are multiplied with.
        weight_scale: ``tr(W Wᵀ)``.
    """

    output: float
    nearest_output: float
    output_scale: float
    weight: float
    weight_scale: float


def output_errors(off_KN: torch.Tensor, hessian_KK: torch.Tensor) -> torch.Tensor:
    """The squared error of each row's output, float64 [N], for what its weights are off by."""
    return (off_KN * (hessian_KK @ off_KN)).sum(0, dtype=torch.float64)


def squares(values: torch.Tensor) -> float:
    """Their sum of squares, added in float64."""
    return float(values.square().sum(dtype=torch.float64))
