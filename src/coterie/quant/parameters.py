"""Parameters of an expert as fields of its record, and the parameters again from the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from coterie.quant.registry import SCHEMES
from coterie.quant.scheme import Parts, Scheme
from coterie.spec import Field, RecordLayout

_TRANSPOSED = "t"
"""Follows the scheme's name in a field's name where the module holds its matrix as [inputs, outputs]."""

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
        prefix = f"{self.parameter}_{self.scheme.name}{_TRANSPOSED if self.transposed else ''}"
        return [(prefix + suffix, dtype, shape) for suffix, dtype, shape in self.scheme.parts(*self.rows_and_columns)]

    def quantise(self, value: torch.Tensor) -> Parts:
        """The content of the fields.

        Raises:
            QuantisationError: If the values are not finite.
        """
        return self.scheme.quantise(value.t() if self.transposed else value)

    def dequantise(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """The parameter, contiguous, from the content of the fields."""
        matrix = self.scheme.dequantise(parts, self.rows_and_columns[1], dtype)
        return matrix.t().contiguous() if self.transposed else matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMatrix:
    """A parameter in a scheme that a record has.

    Attributes:
        matrix: The parameter.
        positions: Indices of its fields in the record.
    """

    matrix: StoredMatrix
    positions: tuple[int, ...]

    def decode(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The parameter of one expert in ``dtype``, from the fields of its record."""
        return self.matrix.dequantise(tuple(tensors[position] for position in self.positions), dtype)


def find_matrices(layout: RecordLayout, parameters: Mapping[str, Shape]) -> dict[str, FoundMatrix]:
    """The parameters that a record holds in a scheme; those whose fields have other shapes are not among them.

    Args:
        layout: Layout of the record.
        parameters: Name → shape of the parameters that the model needs.
    """
    position = {_facts(field): index for index, field in enumerate(layout.fields)}
    found: dict[str, FoundMatrix] = {}
    for name, shape in parameters.items():
        if len(shape) != 2:
            continue
        for scheme in SCHEMES.values():
            for transposed in (False, True):
                matrix = StoredMatrix(parameter=name, shape=shape, scheme=scheme, transposed=transposed)
                fields = matrix.fields()
                if all(one in position for one in fields):
                    found[name] = FoundMatrix(matrix=matrix, positions=tuple(position[one] for one in fields))
    return found


def dequantised_nbytes(layout: RecordLayout, itemsize: int) -> int:
    """The most bytes that the parameters which a record holds in a scheme take once they are dequantised.

    Args:
        layout: Layout of the record.
        itemsize: Bytes per element of the dtype that the model computes in.
    """
    values = 0
    for field in layout.fields:
        for scheme in SCHEMES.values():
            if field.name.endswith((f"_{scheme.name}", f"_{scheme.name}{_TRANSPOSED}")):
                values += prod(field.shape) * scheme.codes_per_element
    return values * itemsize


def _facts(field: Field) -> tuple[str, str, Shape]:
    return field.name, field.dtype, field.shape
