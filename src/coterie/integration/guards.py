"""Operations that make no sense on a streamed model and would silently do the wrong thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from coterie.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REFUSED = {
    "save_pretrained": "Copy the store, or load the checkpoint with transformers to save it.",
    "push_to_hub": "Upload the store's directory with `hf upload`.",
    "state_dict": "Read the checkpoint's tensors with safetensors instead.",
    "load_state_dict": "Extract a new store from the checkpoint that has these weights.",
    "half": "The experts keep the dtype of the store; extract from a checkpoint in the dtype that you want.",
    "float": "The experts keep the dtype of the store; extract from a checkpoint in the dtype that you want.",
    "double": "The experts keep the dtype of the store; extract from a checkpoint in the dtype that you want.",
    "bfloat16": "The experts keep the dtype of the store; extract from a checkpoint in the dtype that you want.",
    "type": "The experts keep the dtype of the store; extract from a checkpoint in the dtype that you want.",
    "to_empty": "It would leave the weights undefined; open the model again instead.",
    "__deepcopy__": "Open the model again with coterie.load(); both then share the files, not the memory.",
    "__reduce_ex__": "Open the model with coterie.load() in the process that needs it.",
    "cuda": "Streamed experts are computed on the CPU.",
    "add_adapter": "Merge the adapter into the checkpoint first (peft: merge_and_unload), then extract.",
    "load_adapter": "Merge the adapter into the checkpoint first (peft: merge_and_unload), then extract.",
    "resize_token_embeddings": "Do it with transformers on the checkpoint, save it, and extract again.",
}
"""Method → what to do instead."""

_SPOKEN = {"__deepcopy__": "deepcopy()", "__reduce_ex__": "Pickling"}
"""What Python calls by itself → what it is called in messages."""


def install_guards(model: PreTrainedModel) -> None:
    """Replaces operations that would miss the experts by errors that say what to do instead."""
    for name, advice in _REFUSED.items():
        if name in _SPOKEN or hasattr(model, name):
            model.__dict__[name] = _refusal(name, advice)
    model.__dict__["to"] = _guarded_to(model)
    model.__dict__["train"] = _guarded_train(model)


def _refusal(name: str, advice: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise UnsupportedError(
            f"{_SPOKEN.get(name, name + '()')} is not possible on a streamed model.", advice=advice, operation=name
        )

    return refuse


def _guarded_to(model: PreTrainedModel) -> Callable[..., PreTrainedModel]:
    def to(*args: Any, **kwargs: Any) -> PreTrainedModel:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        moves = device is not None and device.type != model.device.type
        if moves or (dtype is not None and dtype != model.dtype):
            raise UnsupportedError(
                f"to({', '.join(map(str, args))}) is not possible on a streamed model.",
                advice="It stays on the device and in the dtype that coterie.load() gave it.",
                operation="to",
            )
        return model

    return to


def _guarded_train(model: PreTrainedModel) -> Callable[..., PreTrainedModel]:
    def train(mode: bool = True) -> PreTrainedModel:
        if mode:
            raise UnsupportedError(
                "A streamed model cannot be trained.",
                advice="Load it with transformers for training.",
                operation="train",
            )
        return type(model).train(model, False)

    return train
