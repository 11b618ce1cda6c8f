"""What a record looks like: named fields at aligned offsets, no tensors and no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Any)

FIELD_ALIGNMENT = 64
"""Fields start on multiples of this many bytes within a record: GEMM rounding depends on alignment."""

RECORD_ALIGNMENT = 4096
"""Records start on, and are padded to, multiples of this many bytes: the unit of O_DIRECT."""

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element, by the name that safetensors gives the dtype."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One tensor of a record.

    Attributes:
        name: The parameter's name in the experts module, such as ``gate_up_proj``.
        dtype: safetensors' name of the dtype, such as ``BF16``.
        shape: Shape for one expert, without the expert dimension.
        offset: Bytes from the start of the record; a multiple of 64.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLayout:
    """The fields of a record in order; every expert of a bank and scheme has the same layout.

    Attributes:
        name: Named after the fields as the modules use them, such as ``gate_up|down``.
        fields: In file order, not overlapping, each 64-byte aligned.
        nbytes: Size of the record, a multiple of 4096, padding included.
    """

    name: str
    fields: tuple[Field, ...]
    nbytes: int

    @classmethod
    def build(cls, name: str, fields: Iterable[tuple[str, str, tuple[int, ...]]]) -> RecordLayout:
        """Lays out ``(name, dtype, shape)`` fields one after the other at the required alignments."""
        placed: list[Field] = []
        end = 0
        for field_name, dtype, shape in fields:
            field = Field(name=field_name, dtype=dtype, shape=tuple(shape), offset=round_up(end, FIELD_ALIGNMENT))
            placed.append(field)
            end = field.offset + field.nbytes
        return cls(name=name, fields=tuple(placed), nbytes=round_up(end, RECORD_ALIGNMENT))

    @property
    def payload_nbytes(self) -> int:
        """Bytes of the fields, without padding: what a lossless store may not exceed."""
        return sum(field.nbytes for field in self.fields)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """``(begin, end)`` of the bytes that belong to no field: zero, so that equal experts are equal records."""
        ranges: list[tuple[int, int]] = []
        position = 0
        for field in self.fields:
            if field.offset > position:
                ranges.append((position, field.offset))
            position = field.offset + field.nbytes
        if self.nbytes > position:
            ranges.append((position, self.nbytes))
        return tuple(ranges)


def numbered(layouts: Mapping[Key, RecordLayout]) -> dict[Key, RecordLayout]:
    """Layouts of which each name stands for one.

    Components of one model have experts of different sizes in the same arrangement; the second and further sizes are
    numbered, in ascending order of keys.
    """
    known: dict[str, list[RecordLayout]] = {}
    found: dict[Key, RecordLayout] = {}
    for key in sorted(layouts):
        layout = layouts[key]
        alike = known.setdefault(layout.name, [])
        if layout not in alike:
            alike.append(layout)
        number = alike.index(layout)
        found[key] = layout if number == 0 else replace(layout, name=f"{layout.name};{number + 1}")
    return found
