"""Data on which two ways of adding up a product show whether they add in the same order."""

from __future__ import annotations

import torch


class Telling:
    """Rows and weights whose products have many magnitudes and cancel in pairs at random places.

    Args:
        weight_shape: (m, n).
        dtype: Of rows and weights.

    Attributes:
        weights: Two of shape [m, n].
    """

    def __init__(self, weight_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        width = weight_shape[1]
        self._here, self._there = torch.randperm(width, generator=self._generator)[: width // 2 * 2].view(2, -1)
        weight = torch.randn(weight_shape, generator=self._generator)
        weight[:, self._there] = -weight[:, self._here]
        first = weight.to(dtype)
        self.weights = (first, first.flip(0))

    def rows(self, count: int) -> torch.Tensor:
        """New rows [count, n]."""
        width = self.weights[0].shape[1]
        # Wide enough that most of a small product is lost beside a large one, and within the range of float16.
        scale = 2.0 ** torch.randint(-12, 13, (width,), generator=self._generator)
        rows = torch.randn(count, width, generator=self._generator)
        rows[:, self._here] *= scale[self._here]
        rows[:, self._there] = rows[:, self._here]
        return rows.to(self._dtype)
