"""Matrices in a scheme under the names that they have in records and dense files."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.quant.scheme import Parts, Scheme

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """A parameter, a matrix, in a scheme.

    Attributes:
        parameter: Name in the experts module.
        shape: Shape there.
        scheme: The scheme.
        transposed: Whether the module holds [inputs, outputs]; groups run along the inputs in any case.
    """

    parameter: str
    shape: Shape
    scheme: Scheme
    transposed: bool

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Outputs and inputs."""
        first, second = self.shape
        return (second, first) if self.transposed else (first, second)

    def fields(self) -> list[tuple[str, str, Shape]]:
        """Name, dtype and shape of its fields, in order."""
        ends = self.scheme.form.ends[self.transposed]
        parts = self.scheme.form.parts(*self.rows_and_columns)
        return [(self.parameter + end, dtype, shape) for end, (dtype, shape) in zip(ends, parts, strict=True)]

    def quantise(self, value: torch.Tensor) -> Parts:
        """The content of the fields.

        Raises:
            QuantisationError: If the values are not finite.
        """
        return self.scheme.quantise(value.t() if self.transposed else value)
