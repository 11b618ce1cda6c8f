"""The fields of a quantised expert's record, as a checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coterie.errors import CheckpointFileError, LoadError
from coterie.hf.banks import ExpertBank
from coterie.hf.keymap import FieldSource
from coterie.hf.quantised.names import FP8_SCALE
from coterie.spec import RecordLayout
from coterie.spec.parameters import checkpoint_encoding, encoded_names, plan_record

Shape = tuple[int, ...]


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
        plan_record(layout, bank.parameters, str(bank.key))
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
    return replace(layout, name=";".join(filter(None, (layout.name, bank.variant, checkpoint_encoding(layout)))))
