"""The fields of a quantised expert's record, and which of them make which parameter of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch

from coterie.errors import CheckpointFileError, LoadError
from coterie.hf.banks import ExpertBank
from coterie.hf.dtypes import TORCH_DTYPES
from coterie.hf.keymap import FieldSource
from coterie.hf.quantised.fp8 import check_grid, dequantise_fp8
from coterie.hf.quantised.mxfp4 import VALUES_PER_SCALE, dequantise_mxfp4
from coterie.hf.quantised.names import FP8_SCALE, MXFP4_BLOCKS, MXFP4_SCALES
from coterie.spec import Field, RecordLayout

Shape = tuple[int, ...]
Encoding = Literal["plain", "fp8", "mxfp4"]
_SCALE_DTYPES = ("F32", "F16", "BF16", "F8_E8M0", "U8")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSteps:
    """How one parameter comes out of a record.

    Attributes:
        parameter: Name in the experts module.
        encoding: ``plain`` (the field is the parameter), ``fp8`` or ``mxfp4``.
        position: Index of the field that is the parameter, its FP8 weights, or its MXFP4 blocks.
        scales: Index of the field with the scales; -1 for ``plain``.
        stored: dtype of the field.
    """

    parameter: str
    encoding: Encoding
    position: int
    scales: int
    stored: torch.dtype

    def decode(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The parameter of one expert in ``dtype``, with the bits that transformers gives it."""
        if self.encoding == "fp8":
            return dequantise_fp8(tensors[self.position], tensors[self.scales], dtype)
        if self.encoding == "mxfp4":
            return dequantise_mxfp4(tensors[self.position], tensors[self.scales], dtype)
        return tensors[self.position].to(dtype)


def encoded_names(parameter: str) -> tuple[str, ...]:
    """The names of fields that, together with the parameter's own or instead of it, make a quantised parameter."""
    return (f"{parameter}{FP8_SCALE}", f"{parameter}{MXFP4_BLOCKS}", f"{parameter}{MXFP4_SCALES}")


def plan_fields(layout: RecordLayout, parameters: Mapping[str, Shape], where: str) -> tuple[FieldSteps, ...]:
    """Finds the fields of every parameter.

    Args:
        layout: Layout of a record.
        parameters: Name → shape of the parameters that the model needs, in order.
        where: Whose record it is, for the message.

    Raises:
        LoadError: If the record's fields do not make the parameters, or are more than needed.
    """
    position = {field.name: index for index, field in enumerate(layout.fields)}
    steps = [_steps(name, shape, layout.fields, position) for name, shape in parameters.items()]
    found = [step for step in steps if step is not None]
    used = sum(1 if step.encoding == "plain" else 2 for step in found)
    if len(found) < len(parameters) or used != len(layout.fields):
        got = {field.name: field.shape for field in layout.fields}
        raise LoadError(
            f"The experts of {where} have fields {got}, the model needs {dict(parameters)}.",
            advice="The configuration and the weights do not belong together.",
            bank=where,
            expected=dict(parameters),
            got=got,
        )
    return tuple(found)


def _steps(name: str, shape: Shape, fields: tuple[Field, ...], position: Mapping[str, int]) -> FieldSteps | None:
    encoding: Encoding
    if f"{name}{FP8_SCALE}" in position and name in position:
        encoding, first, second = "fp8", position[name], position[f"{name}{FP8_SCALE}"]
        fits = _is_fp8(fields[first], fields[second], shape)
    elif f"{name}{MXFP4_BLOCKS}" in position and f"{name}{MXFP4_SCALES}" in position:
        encoding, first, second = "mxfp4", position[f"{name}{MXFP4_BLOCKS}"], position[f"{name}{MXFP4_SCALES}"]
        fits = _is_mxfp4(fields[first], fields[second], shape)
    elif name in position:
        encoding, first, second = "plain", position[name], -1
        fits = fields[first].shape == shape
    else:
        return None
    if not fits:
        return None
    stored = TORCH_DTYPES[fields[first].dtype]
    return FieldSteps(parameter=name, encoding=encoding, position=first, scales=second, stored=stored)


def _is_fp8(weights: Field, scales: Field, shape: Shape) -> bool:
    return (
        weights.dtype == "F8_E4M3"
        and weights.shape == shape
        and len(shape) == 2
        and scales.dtype in _SCALE_DTYPES
        and len(scales.shape) == 2
        and check_grid(shape, scales.shape)
    )


def _is_mxfp4(blocks: Field, scales: Field, shape: Shape) -> bool:
    return (
        blocks.dtype == scales.dtype == "U8"
        and len(blocks.shape) == 3
        and blocks.shape[:2] == scales.shape
        and blocks.shape[2] == VALUES_PER_SCALE // 2
        and shape == (blocks.shape[1] * VALUES_PER_SCALE, blocks.shape[0])
    )


def encoding_of(layout: RecordLayout) -> Encoding:
    """How the quantised fields of a layout are encoded; ``plain`` if there are none."""
    names = {field.name for field in layout.fields}
    if any(name.endswith(FP8_SCALE) and name.removesuffix(FP8_SCALE) in names for name in names):
        return "fp8"
    return "mxfp4" if any(name.endswith(MXFP4_BLOCKS) for name in names) else "plain"


def decoded_nbytes(layout: RecordLayout, itemsize: int) -> int:
    """Bytes that an expert takes once it is decoded, beside its record; 0 if nothing is quantised.

    Args:
        layout: Layout of its record.
        itemsize: Bytes per element of the dtype that the model computes in.
    """
    names = {field.name for field in layout.fields}
    values = 0
    for field in layout.fields:
        if f"{field.name}{FP8_SCALE}" in names:
            values += prod(field.shape)
        elif field.name.endswith(MXFP4_BLOCKS):
            values += 2 * prod(field.shape)
    return values * itemsize


def record_fields(
    bank: ExpertBank, sources: Mapping[str, FieldSource], shapes: Mapping[str, Shape], dtypes: Mapping[str, str]
) -> list[tuple[str, str, Shape]]:
    """Name, dtype and shape of the fields of an expert's record, in order.

    Args:
        bank: The bank in the model.
        sources: Field name → where it comes from.
        shapes: Shapes of the checkpoint's tensors by name.
        dtypes: Field name → dtype of its tensors.

    Raises:
        CheckpointFileError: If weights do not divide into the blocks of their scales.
    """
    fields: list[tuple[str, str, Shape]] = []
    for parameter, shape in bank.parameters.items():
        if parameter in sources:
            fields.append((parameter, dtypes[parameter], shape))
        for name in encoded_names(parameter):
            if name in sources:
                fields.append((name, dtypes[name], _stored_shape(sources[name], shapes)))
    if len(fields) > len(bank.parameters):
        _check_encoded(bank, fields)
    return fields


def _stored_shape(source: FieldSource, shapes: Mapping[str, Shape]) -> Shape:
    """The shape that one expert's tensors have together, concatenated along their first dimension."""
    pieces = [shapes[name] if source.per_expert else shapes[name][1:] for name in source.names_of(0)]
    # One scale for a whole tensor is a grid of one block.
    pieces = [piece if len(piece) >= 2 else (1, 1) for piece in pieces]
    return (sum(piece[0] for piece in pieces), *pieces[0][1:])


def _check_encoded(bank: ExpertBank, fields: list[tuple[str, str, Shape]]) -> None:
    layout = RecordLayout.build("", fields)
    try:
        plan_fields(layout, bank.parameters, str(bank.key))
    except LoadError as error:
        raise CheckpointFileError(
            f"The quantised experts of {bank.path} cannot be decoded: weights, blocks and scales "
            f"{error.facts['got']} do not fit the model's {error.facts['expected']}.",
            advice="config.json and the weights do not belong together, or weights do not divide into whole blocks, "
            "which transformers cannot load either.",
            tensor=bank.path,
            expected=error.facts["expected"],
            got=error.facts["got"],
        ) from error


def record_layout(bank: ExpertBank, fields: list[tuple[str, str, Shape]]) -> RecordLayout:
    """The layout of a bank's records in the checkpoint's own dtype, named after fields, arrangement and encoding."""
    names = [name for name, _, _ in fields]
    if names == list(bank.parameters):
        return bank.layout({name: dtype for name, dtype, _ in fields})
    short = [name.replace("_proj", "").replace(FP8_SCALE, "_scale") for name in names]
    layout = RecordLayout.build("|".join(short), fields)
    return replace(layout, name=";".join(filter(None, (layout.name, bank.variant, encoding_of(layout)))))
