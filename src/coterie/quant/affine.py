"""Codes of a few bits with a scale and a zero for every group, chosen for the least squared error.

Candidates are the plain range of a group and ranges clipped by a few shares of it. Each is refined by turns: codes for
a scale and a zero, then the scale and zero that fit these codes best, in closed form, and so on. (Half-quadratic
quantisation, Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/, also alternates, but moves only the zero and
under a norm that forgives outliers; ``benchmarks/bench_schemes.py`` compares them.) The best of all is kept, by the
error of what a reader will compute, roundings included.

Everything is done one operation at a time on whole arrays, sums as trees of additions: the same weights give the same
bytes on every machine, whatever its vector width and however many threads it has. :mod:`coterie.native` does the same
operations in the same order, much faster; this is what defines the result, and what serves where that was not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

CLIPS = {2: (1.0, 0.75, 0.5), 3: (1.0, 0.87), 4: (1.0, 0.87), 5: (1.0, 0.87), 6: (1.0, 0.87)}
"""By the bits of a code: shares of a group's range to begin with. Of few codes the outermost ones are best left out."""
_TURNS = 3
_ROUNDING = 1.5 * 2.0**23
"""Added and taken away again, rounds a small float32 to the nearest whole number, halves to even, and -0 to 0."""


@dataclass(frozen=True, slots=True)
class AffineGroups:
    """R quantised groups of g weights.

    Attributes:
        codes: float32 [g, R], whole numbers from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``.
        scales: bfloat16 [R].
        zeros: bfloat16 [R]; a weight is ``code * scale + zero``.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor


def code_range(bits: int) -> tuple[int, int]:
    """The least and the greatest code of so many bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantise_groups(weights: torch.Tensor, bits: int) -> AffineGroups:
    """Quantises groups.

    Args:
        weights: float32 [g, R], finite, a group in each column.
        bits: Bits of a code; a key of :data:`CLIPS`.
    """
    search = _Search(weights, bits)
    lowest, highest = code_range(bits)
    for clip in CLIPS[bits]:
        # Towards the middle of the range, from both ends alike.
        scale_R = search.range_R * (clip / (highest - lowest))
        search.offer(scale_R, search.low_R + search.range_R * ((1 - clip) / 2) - lowest * scale_R)
        for _ in range(_TURNS):
            search.offer(*search.fit())
    return search.result()


class _Search:
    """The best scale and zero so far for each group.

    Inside, weights are in units of the group's largest distance from its mean: squares neither overflow nor vanish.
    """

    def __init__(self, weights: torch.Tensor, bits: int) -> None:
        self._lowest, self._highest = code_range(bits)
        unit_R = weights.abs().amax(0)
        self._unit_R = torch.where(unit_R > 0, unit_R, torch.ones_like(unit_R))
        # Two steps, because a sum of the weights themselves can overflow.
        x_gR = weights / self._unit_R
        self._mean_R = total(x_gR) / len(x_gR)
        self._x_gR = x_gR.sub_(self._mean_R)
        self.low_R = self._x_gR.amin(0)
        self.range_R = self._x_gR.amax(0) - self.low_R
        self._codes_gR = torch.empty_like(self._x_gR)
        self._scratch_gR = torch.empty_like(self._x_gR)
        self._error_R = torch.full_like(unit_R, torch.inf)
        self._scales_R = torch.zeros_like(unit_R, dtype=torch.bfloat16)
        self._zeros_R = torch.zeros_like(unit_R, dtype=torch.bfloat16)

    def offer(self, scale_R: torch.Tensor, zero_R: torch.Tensor) -> None:
        """Keeps a scale and zero where they are better, judged as they will be stored."""
        scales_R = (scale_R * self._unit_R).bfloat16()
        zeros_R = ((zero_R + self._mean_R) * self._unit_R).bfloat16()
        step_R = self._encode(scales_R, zeros_R)
        error_R = total(self._scratch_gR.sub_(self._codes_gR * step_R).square_())
        # Near the end of bfloat16's range a product may have left it.
        better_R = (error_R < self._error_R) & scales_R.isfinite() & zeros_R.isfinite()
        self._error_R = torch.where(better_R, error_R, self._error_R)
        self._scales_R = torch.where(better_R, scales_R, self._scales_R)
        self._zeros_R = torch.where(better_R, zeros_R, self._zeros_R)

    def fit(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale and zero with the least squared error for the codes last tried: linear regression."""
        count = len(self._x_gR)
        mean_R = total(self._codes_gR) / count
        spread_R = total(torch.mul(self._codes_gR, self._codes_gR, out=self._scratch_gR)) - count * mean_R.square()
        # The weights' mean is 0.
        slope_R = total(torch.mul(self._codes_gR, self._x_gR, out=self._scratch_gR)) / spread_R.clamp_min(1e-6)
        return slope_R, -slope_R * mean_R

    def result(self) -> AffineGroups:
        """The best choice."""
        self._encode(self._scales_R, self._zeros_R)
        return AffineGroups(self._codes_gR, self._scales_R, self._zeros_R)

    def _encode(self, scales_R: torch.Tensor, zeros_R: torch.Tensor) -> torch.Tensor:
        """Sets the codes for a scale and zero, and the scratch to weight less zero; returns the step, in units."""
        step_R = scales_R.float() / self._unit_R
        zero_R = zeros_R.float() / self._unit_R - self._mean_R
        # With a scale of 0 all codes are 0.
        inverse_R = torch.where(step_R == 0, torch.zeros_like(step_R), 1 / step_R)
        torch.sub(self._x_gR, zero_R, out=self._scratch_gR)
        torch.mul(self._scratch_gR, inverse_R, out=self._codes_gR).clamp_(self._lowest, self._highest)
        self._codes_gR.add_(_ROUNDING).sub_(_ROUNDING)
        return step_R


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, in an order that is the same on every machine."""
    while len(x) > 1:
        half = len(x) // 2
        odd = x[2 * half :]
        x = x[:half] + x[half : 2 * half]
        if len(odd):
            x[0] += odd[0]
    return x[0]
