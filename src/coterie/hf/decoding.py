"""Turns checkpoint tensors into the fields of one expert, with transformers' own conversion operations."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from coterie.errors import CheckpointFileError
from coterie.hf.keymap import FieldSource
from coterie.hf.releases import moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

with moved(__name__):
    from transformers.core_model_loading import Concatenate, ErnieFuseAndSplitTextVisionExperts, MergeModulelist

ReadTensor = Callable[[str, int | None], torch.Tensor]
"""Reads a checkpoint tensor by name; with a number, only that index of the first dimension, kept: ``[e:e+1]``."""


def is_plain(source: FieldSource) -> bool:
    """Whether an expert's field is its checkpoint tensors' bytes one after the other.

    True for a tensor that is used as it is, for a stack of one tensor per expert, and for such stacks concatenated
    along the first dimension of the expert (dimension 1 of the stack).
    """
    if source.converter is None:
        return True
    operations = source.converter.operations
    if len(operations) == 1 and isinstance(operations[0], ErnieFuseAndSplitTextVisionExperts):
        return (operations[0].stack_dim, operations[0].concat_dim) == (0, 1)
    if not operations or type(operations[0]) is not MergeModulelist or operations[0].dim != 0:
        return False
    if len(operations) == 1:
        return len(source.names) == 1
    return len(operations) == 2 and type(operations[1]) is Concatenate and operations[1].dim == 1


class OneExpertModel:
    """The model as a conversion of one expert must see it: its parameters have one expert.

    Some conversions compare a tensor's shape with the parameter's to tell whether it lies transposed in the file.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def get_parameter(self, name: str) -> torch.Tensor:
        """The parameter with the first expert only."""
        parameter: torch.Tensor = self._model.get_parameter(name)
        return parameter[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def decode_field(source: FieldSource, expert: int, read: ReadTensor, model: PreTrainedModel) -> torch.Tensor:
    """Decodes one parameter of one expert.

    Args:
        source: Where the parameter comes from.
        expert: Which expert.
        read: Reads checkpoint tensors.
        model: The skeleton; some operations read its configuration.

    Returns:
        The parameter's tensor without the expert dimension, contiguous.

    Raises:
        CheckpointFileError: If the tensors do not have the shapes that the conversion needs.
    """
    if source.converter is None:
        (name,) = source.names_of(expert)
        if source.holding == "separate":
            return read(name, None).contiguous()
        if source.holding == "rows":
            whole = read(name, None)
            return whole.view(source.stacked_shape(tuple(whole.shape)))[expert].clone()
        return read(name, expert)[0].contiguous()
    converter = deepcopy(source.converter)
    for pattern, name in zip(source.names, source.names_of(expert), strict=True):
        piece = read(name, None if source.per_expert else expert)
        # A converter that shares out its tensors gets one for each parameter; only this one's result is looked at.
        for _ in range(source.parts):
            converter.add_tensor(source.target, name, pattern, piece)
    try:
        realized = converter.convert(source.target, model=OneExpertModel(model), config=model.config)
        value = realized[source.target]
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointFileError(
            f"Expert {expert} of {source.target} cannot be decoded from its tensors: {error}",
            advice="Compare the shapes in the checkpoint with config.json.",
            tensor=source.target,
        ) from error
    tensor: torch.Tensor = value[0] if isinstance(value, list) else value
    return tensor[0].contiguous()
