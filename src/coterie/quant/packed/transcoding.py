"""Unpacked weights as the codes, scales and zeros of a scheme: the same weights, bit for bit where nothing is rounded.

Codes are never chosen again. Zeros of MLX, which adds a bias to codes from 0 where a scheme adds a zero to codes around
0, are rounded where the sum of bias and half the range times the scale is not a number of their dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.quant.dtypes import TORCH_DTYPES
from coterie.quant.packed.float_blocks import FloatBlocks
from coterie.quant.packed.lattice import Lattice
from coterie.quant.registry import GROUPED_SCHEMES
from coterie.quant.scheme import Parts
from coterie.spec.encodings import SchemeFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """What was rounded on the way into a scheme.

    Attributes:
        zeros: Zeros that were rounded.
        of: Zeros altogether.
        steps: By how much at most, in steps of their groups: the distance of neighbouring weights.
    """

    zeros: int = 0
    of: int = 0
    steps: float = 0.0

    def __add__(self, other: Rounded) -> Rounded:
        return Rounded(zeros=self.zeros + other.zeros, of=self.of + other.of, steps=max(self.steps, other.steps))


def transcode(lattice: Lattice | FloatBlocks, name: str) -> tuple[Parts, Rounded]:
    """A weight in a scheme.

    Args:
        lattice: The weight.
        name: The scheme that :meth:`coterie.spec.packing.Packing.scheme` says.
    """
    if isinstance(lattice, FloatBlocks):
        return lattice.parts(), Rounded()
    scheme = GROUPED_SCHEMES[name]
    form, rounded = scheme.form, Rounded()
    scales_NG = _spread(lattice.scales_NG, lattice, form)
    zeros_NG = None
    if form.numbers == "zp":
        assert lattice.points_NG is not None, "the scheme has points because the packing has"
        zeros_NG = _spread(lattice.points_NG, lattice, form)
    elif form.numbers == "zero":
        zeros, rounded = _zeros(lattice, form)
        zeros_NG = _spread(zeros, lattice, form)
        scales_NG = scales_NG.to(zeros.dtype)
    codes_NK = lattice.codes_NK
    if form.code_dtype == "I8":
        codes_NK = (codes_NK ^ 0x80).view(torch.int8)
    return scheme.assemble(codes_NK, scales_NG, zeros_NG), rounded


def _zeros(lattice: Lattice, form: SchemeFormat) -> tuple[torch.Tensor, Rounded]:
    """The zeros of groups, in the dtype of the scheme."""
    scales = lattice.scales_NG.double()
    middle = 1 << (lattice.bits - 1)
    if lattice.biases_NG is not None:
        exact = lattice.biases_NG.double() + middle * scales
    elif lattice.points_NG is not None:
        exact = (middle - lattice.points_NG.double()) * scales
    else:
        exact = torch.zeros_like(scales)
    zeros = exact.to(TORCH_DTYPES[form.scale_dtype])
    off = (zeros.double() - exact).abs()
    steps = off / scales.abs().clamp_min(torch.finfo(torch.float64).tiny)
    return zeros, Rounded(zeros=int((off > 0).sum()), of=off.numel(), steps=float(steps.max()) if off.numel() else 0.0)


def _spread(of_groups_NG: torch.Tensor, lattice: Lattice, form: SchemeFormat) -> torch.Tensor:
    """What the checkpoint's groups have, for the scheme's groups, of which one or several lie in each of those."""
    have, want = of_groups_NG.shape[1], form.group_count(lattice.codes_NK.shape[1])
    return of_groups_NG if have == want else of_groups_NG.repeat_interleave(want // have, dim=1)
