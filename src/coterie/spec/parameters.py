"""Which fields of a record make which parameter of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from coterie.errors import LoadError
from coterie.spec.encodings import (
    CHECKPOINT_ENCODINGS,
    SCHEME_FORMATS,
    Encoding,
    Facts,
    Shape,
    record_scheme,
    scheme_of_codes,
)
from coterie.spec.layout import Field, RecordLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParameter:
    """A parameter of an expert as a record has it.

    Attributes:
        name: Name in the experts module.
        shape: Shape there.
        encoding: How it is encoded; None where the field is the parameter.
        positions: Indices of the record's fields: of the parameter itself, or of codes and scales.
        transposed: Whether the codes are those of the transposed parameter.
    """

    name: str
    shape: Shape
    encoding: Encoding | None
    positions: tuple[int, ...]
    transposed: bool = False


def plan_record(layout: RecordLayout, parameters: Mapping[str, Shape], where: str) -> dict[str, StoredParameter]:
    """Finds the fields of every parameter.

    Args:
        layout: Layout of a record.
        parameters: Name → shape of the parameters that the model needs, in order.
        where: Whose record it is, for the message.

    Returns:
        In the order of ``parameters``.

    Raises:
        LoadError: If the record's fields do not make the parameters, or are more than needed.
    """
    fields = {field.name: (index, (field.dtype, field.shape)) for index, field in enumerate(layout.fields)}
    found = {name: _find(name, shape, fields) for name, shape in parameters.items()}
    planned = {name: stored for name, stored in found.items() if stored is not None}
    used = sum(len(stored.positions) for stored in planned.values())
    if len(planned) < len(parameters) or used != len(layout.fields):
        got = {field.name: field.shape for field in layout.fields}
        raise LoadError(
            f"The experts of {where} have fields {got}, the model needs {dict(parameters)}.",
            advice="The configuration and the weights do not belong together.",
            bank=where,
            expected=dict(parameters),
            got=got,
        )
    return planned


def _find(name: str, shape: Shape, fields: Mapping[str, tuple[int, Facts]]) -> StoredParameter | None:
    for encoding in (*SCHEME_FORMATS.values(), *CHECKPOINT_ENCODINGS):
        for transposed, ends in enumerate(encoding.ends):
            parts = [fields.get(name + end) for end in ends]
            if None in parts:
                continue
            (first, codes), (second, scales) = (part for part in parts if part is not None)
            if encoding.fits(codes, scales, shape[::-1] if transposed else shape):
                return StoredParameter(
                    name=name, shape=shape, encoding=encoding, positions=(first, second), transposed=bool(transposed)
                )
    if name in fields and fields[name][1][1] == shape:
        return StoredParameter(name=name, shape=shape, encoding=None, positions=(fields[name][0],))
    return None


def encoded_names(parameter: str) -> tuple[str, ...]:
    """The names of fields that, with the parameter's own or instead of it, make one that a checkpoint has quantised."""
    ends = (end for encoding in CHECKPOINT_ENCODINGS for pair in encoding.ends for end in pair if end)
    return tuple(parameter + end for end in ends)


def checkpoint_encoding(layout: RecordLayout) -> str | None:
    """Name of the encoding that a checkpoint brought along for the fields of this layout; None if there is none."""
    names = {field.name for field in layout.fields}
    encodings = (one for one in CHECKPOINT_ENCODINGS if any(one.scales_of(name) in names for name in names))
    return next((encoding.name for encoding in encodings), None)


def dequantised_nbytes(layout: RecordLayout, itemsize: int) -> int:
    """Bytes that an expert takes once it is dequantised, beside its record; 0 if nothing is quantised.

    Args:
        layout: Layout of its record.
        itemsize: Bytes per element of the dtype that the model computes in.
    """
    return itemsize * sum(encoding.values(prod(field.shape)) for encoding, field, _ in _encoded(layout))


def weight_count(layout: RecordLayout) -> int:
    """Weights of an expert, whatever its record has them stored in."""
    encoded = _encoded(layout)
    of_pairs = {name for _, field, scales in encoded for name in (field.name, scales)}
    plain = sum(prod(field.shape) for field in layout.fields if field.name not in of_pairs)
    return plain + sum(encoding.values(prod(field.shape)) for encoding, field, _ in encoded)


def precision(layout: RecordLayout) -> str:
    """How the parameters of a record are stored, in a word: a scheme, a checkpoint's encoding, or else a dtype."""
    names = {encoding.name for encoding, _, _ in _encoded(layout)}
    found = [name for name in (*SCHEME_FORMATS, *(one.name for one in CHECKPOINT_ENCODINGS)) if name in names]
    return record_scheme(found) if found else layout.fields[0].dtype.lower()


def uses_scheme(layout: RecordLayout) -> bool:
    """Whether any field is the codes of a lossy scheme of ours."""
    return any(encoding.name in SCHEME_FORMATS for encoding, _, _ in _encoded(layout))


def _encoded(layout: RecordLayout) -> list[tuple[Encoding, Field, str]]:
    """The fields of a record that are codes: what they are encoded in, and the name of their scales."""
    names = {field.name for field in layout.fields}
    found: list[tuple[Encoding, Field, str]] = []
    for field in layout.fields:
        scheme = scheme_of_codes(field.name)
        if scheme is not None and scheme[1] in names:
            found.append((scheme[0], field, scheme[1]))
            continue
        for encoding in CHECKPOINT_ENCODINGS:
            scales = encoding.scales_of(field.name)
            if scales is not None and scales in names:
                found.append((encoding, field, scales))
                break
    return found
