"""What a lossy scheme is: a matrix [rows, columns] as a few tensors of known shapes, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import ClassVar

import torch

from coterie.errors import QuantisationError
from coterie.quant.rows import row_blocks
from coterie.spec import DTYPE_BYTES

Parts = tuple[torch.Tensor, ...]
PartFields = tuple[tuple[str, str, tuple[int, ...]], ...]
"""For each part: what is appended to its name, dtype by safetensors' name, shape."""


class Scheme(ABC):
    """A way of storing matrices in fewer bits. Rows are outputs, columns inputs; groups run along a row."""

    name: ClassVar[str]
    codes_per_element: ClassVar[int]
    """Weights that one element of the first part stands for."""

    @abstractmethod
    def parts(self, rows: int, columns: int) -> PartFields:
        """The tensors that store a matrix of this shape, in order."""

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix of this shape, scales included."""
        return sum(prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in self.parts(rows, columns))

    def quantise(self, weights: torch.Tensor) -> Parts:
        """Quantises a matrix.

        Args:
            weights: [rows, columns] of a floating dtype, finite.

        Returns:
            The tensors of :meth:`parts`. The same weights give the same bytes on every machine.

        Raises:
            QuantisationError: If a weight is infinite or not a number, or too large for a scale in bfloat16.
        """
        if weights.dim() != 2 or not weights.is_floating_point():
            raise QuantisationError(
                f"Only a matrix of floating numbers can be quantised, not {weights.dtype} {list(weights.shape)}.",
                shape=tuple(weights.shape),
            )
        # bfloat16 ends where float32 does but for its last steps, in which a scale or zero would round to infinity.
        limit = torch.finfo(torch.bfloat16).max
        for block in row_blocks(*weights.shape):
            fits = weights[block].abs() <= limit
            if not bool(fits.all()):
                row = block.start + int(torch.argmin(fits.all(dim=1).int()))
                raise QuantisationError(
                    f"Row {row} has a weight that is infinite or not a number; {self.name} cannot store it.",
                    advice="The checkpoint is damaged, or its weights overflow; the scheme 'native' stores it as is.",
                    row=row,
                )
        return self._quantise(weights)

    @abstractmethod
    def _quantise(self, weights: torch.Tensor) -> Parts:
        """:meth:`quantise` of weights that have been checked."""

    @abstractmethod
    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [rows, ``columns``] that the parts stand for, computed in float32 and rounded to ``dtype``."""
