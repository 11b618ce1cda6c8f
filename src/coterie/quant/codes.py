"""Codes apart from how they are packed: what chooses codes by calibration works with these, whatever the scheme."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The codes of a scheme.

    Attributes:
        lowest: The smallest code.
        highest: The largest.
        has_zeros: Whether a group has a zero beside its scale; else 0 is exactly the code 0.
    """

    lowest: int
    highest: int
    has_zeros: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A matrix of N rows and K columns in G groups along its rows: ``weight = code * scale + zero``.

    Columns come first here, because codes are chosen column by column.

    Attributes:
        codes_KN: float32, whole numbers.
        scales_GN: float32, each exactly a bfloat16 number.
        zeros_GN: Likewise; 0 where the scheme has none.
        group: How many columns share a scale; the last ones may be fewer.
    """

    codes_KN: torch.Tensor
    scales_GN: torch.Tensor
    zeros_GN: torch.Tensor
    group: int

    def weights_KN(self) -> torch.Tensor:
        """The matrix that they stand for, float32, transposed."""
        return self.codes_KN * self.spread(self.scales_GN) + self.spread(self.zeros_GN)

    def spread(self, of_groups_GN: torch.Tensor) -> torch.Tensor:
        """What groups have as what each of their columns has, [K, N]."""
        return of_groups_GN.repeat_interleave(self.group, dim=0)[: len(self.codes_KN)]
