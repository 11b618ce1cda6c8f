"""What a lossy scheme does: a matrix [rows, columns] becomes two tensors of known shapes, and a matrix again."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from coterie import native
from coterie.errors import QuantisationError, UnsupportedError
from coterie.quant.codes import Codes, Grid
from coterie.quant.rows import row_blocks
from coterie.spec.encodings import SchemeFormat
from coterie.spec.scheme_names import check_made_here

Parts = tuple[torch.Tensor, torch.Tensor]
"""Codes and scales."""


class Scheme(ABC):
    """A way of storing matrices in fewer bits. Rows are outputs, columns inputs; groups run along a row."""

    form: SchemeFormat
    """Name, dtypes and shapes."""

    grid: Grid | None = None
    """Its codes; None for a scheme whose codes cannot be chosen by calibration."""

    @property
    def name(self) -> str:
        """As manifests and users write it."""
        return self.form.name

    def quantise(self, weights: torch.Tensor) -> Parts:
        """Quantises a matrix.

        Args:
            weights: [rows, columns] of a floating dtype, finite.

        Returns:
            The tensors that :attr:`form` describes. The same weights give the same bytes on every machine.

        Raises:
            QuantisationError: If a weight is infinite or not a number, or too large for a scale in bfloat16.
            UsageError: If nothing is quantised to this scheme.
        """
        check_made_here(self.name)
        if weights.dim() != 2 or not weights.is_floating_point():
            raise QuantisationError(
                f"Only a matrix of floating numbers can be quantised, not {weights.dtype} {list(weights.shape)}.",
                shape=tuple(weights.shape),
            )
        library = native.library() if native.knows(self.name) else None
        if library is not None and weights.is_cpu and weights.dtype in native.QUANTISED_FROM and weights.numel():
            codes, scales = (
                torch.empty(shape, dtype=native.PART_DTYPES[dtype]) for dtype, shape in self.form.parts(*weights.shape)
            )
            row = native.quantise(library, self.name, weights, codes, scales)
            if row is not None:
                raise self._refusal(row)
            return codes, scales
        # bfloat16 ends where float32 does but for its last steps, in which a scale or zero would round to infinity.
        limit = torch.finfo(torch.bfloat16).max
        for block in row_blocks(*weights.shape):
            fits = weights[block].abs() <= limit
            if not bool(fits.all()):
                raise self._refusal(block.start + int(torch.argmin(fits.all(dim=1).int())))
        return self._quantise(weights)

    def _refusal(self, row: int) -> QuantisationError:
        return QuantisationError(
            f"Row {row} has a weight that is infinite or not a number; {self.name} cannot store it.",
            advice="The checkpoint is damaged, or its weights overflow; the scheme 'native' stores it as is.",
            row=row,
        )

    @abstractmethod
    def _quantise(self, weights: torch.Tensor) -> Parts:
        """:meth:`quantise` of weights that have been checked, by torch: the definition of the result."""

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [rows, ``columns``] that the parts stand for, computed in float32 and rounded to ``dtype``."""
        library = native.library() if native.knows(self.name) else None
        if library is None or dtype not in native.DEQUANTISED_TO or not self.is_plain(parts, columns):
            return self._dequantise(parts, columns, dtype)
        codes, scales = parts
        weights = torch.empty(len(codes), columns, dtype=dtype)
        native.dequantise(library, self.name, codes, scales, weights)
        return weights

    @abstractmethod
    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """:meth:`dequantise` by torch: the definition of the result."""

    def unpacked(self, parts: Parts, columns: int) -> Codes:
        """The codes, scales and zeros of a matrix with so many columns; :meth:`packed` is the way back.

        Raises:
            UnsupportedError: If the scheme has no :attr:`grid`.
        """
        raise self.no_grid()

    def packed(self, codes: Codes) -> Parts:
        """The tensors that :attr:`form` describes, of codes that :attr:`grid` has.

        Raises:
            UnsupportedError: If the scheme has no :attr:`grid`.
        """
        raise self.no_grid()

    def no_grid(self) -> UnsupportedError:
        """That codes cannot be chosen by calibration."""
        return UnsupportedError(
            f"Codes of {self.name} cannot be chosen by calibration.", advice="Quantise without it.", scheme=self.name
        )

    def is_plain(self, parts: Parts, columns: int) -> bool:
        """Whether the parts are just as :attr:`form` says, in memory."""
        wanted = self.form.parts(len(parts[0]), columns)
        return all(
            part.dtype == native.PART_DTYPES[dtype]
            and tuple(part.shape) == shape
            and part.is_contiguous()
            and part.is_cpu
            for part, (dtype, shape) in zip(parts, wanted, strict=True)
        )
