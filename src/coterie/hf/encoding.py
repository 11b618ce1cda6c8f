"""Turns the fields of one expert back into checkpoint tensors, with transformers' own reverse operations."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from coterie.errors import CoterieError, UnsupportedError
from coterie.hf.decoding import OneExpertModel, decode_field
from coterie.hf.keymap import FieldSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def encode_field(source: FieldSource, value: torch.Tensor, model: PreTrainedModel) -> list[torch.Tensor]:
    """The checkpoint tensors of one parameter of one expert: what :func:`decode_field` makes it of, bit for bit.

    Args:
        source: Where the parameter would come from; one that transformers converts.
        value: The parameter, without the expert dimension.
        model: The skeleton; some operations read its configuration.

    Returns:
        One for each of the source's patterns, in their order, without the expert dimension.

    Raises:
        UnsupportedError: If transformers has no way back.
    """
    found = _reversed(source, value, model)
    if found is not None and _comes_back(source, found, value, model):
        return found
    # A conversion that transposes only what does not fit leaves what fits as it is.
    if len(source.names) == 1 and _comes_back(source, [value], value, model):
        return [value]
    raise UnsupportedError(
        f"{source.target} is rearranged by transformers on loading in a way that it cannot undo.",
        advice="Such a model can be pruned into a store, and not exported.",
        tensor=source.target,
    )


def _reversed(source: FieldSource, value: torch.Tensor, model: PreTrainedModel) -> list[torch.Tensor] | None:
    """What the reverse operations give; None if there are none, or another number of tensors comes out."""
    try:
        converter = deepcopy(source.converter).reverse_transform()  # type: ignore[union-attr]
        converter.add_tensor(source.target, source.target, converter.source_patterns[0], value[None].clone())
        realized = converter.convert(source.target, model=OneExpertModel(model), config=model.config)
    except (NotImplementedError, RuntimeError, KeyError, ValueError, AttributeError, TypeError):
        return None
    tensors = [one[0] if isinstance(one, list) else one for one in realized.values()]
    if len(tensors) != len(source.names):
        return None
    return [(tensor if source.per_expert else tensor[0]).contiguous() for tensor in tensors]


def _comes_back(source: FieldSource, parts: list[torch.Tensor], value: torch.Tensor, model: PreTrainedModel) -> bool:
    """Whether decoding the tensors gives the parameter again."""
    by_name = dict(zip(source.names_of(0), parts, strict=True))
    if len(by_name) != len(parts):
        return False

    def read(name: str, index: int | None) -> torch.Tensor:
        return by_name[name] if index is None else by_name[name][None]

    try:
        again = decode_field(source, 0, read, model)
    except CoterieError:
        return False
    same = again.shape == value.shape and again.dtype == value.dtype
    return same and torch.equal(again.view(torch.uint8), value.contiguous().view(torch.uint8))
