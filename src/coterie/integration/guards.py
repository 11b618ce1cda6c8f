"""Operations that make no sense on a streamed model and would silently do the wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from coterie.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MERGE = "Merge the adapter into the checkpoint first (peft: merge_and_unload), then extract."

_BATCH = (
    "Continuous batching sizes its cache by the memory that is free, beyond any budget. Call generate() with a padded "
    "batch, or from several threads: both stay within it."
)

_REFUSED = {
    "save_pretrained": "Copy the store, or load the checkpoint with transformers to save it.",
    "push_to_hub": "Upload the store's directory with `hf upload`.",
    "state_dict": "Read the checkpoint's tensors with safetensors; merge adapters into it first (merge_and_unload).",
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
    "generate_batch": _BATCH,
    "init_continuous_batching": _BATCH,
    "continuous_batching_context_manager": _BATCH,
    "add_adapter": _MERGE,
    "load_adapter": _MERGE,
    "resize_token_embeddings": "Do it with transformers on the checkpoint, save it, and extract again.",
}
"""Method → what to do instead."""

_SPOKEN = {"__deepcopy__": "deepcopy()", "__reduce_ex__": "Pickling"}
"""What Python calls by itself → what it is called in messages."""


def install_guards(model: PreTrainedModel, removed: Collection[str]) -> None:
    """Replaces operations that would miss the experts by errors that say what to do instead.

    That holds for the model and for every part of it that has streamed experts in it: ``model.model.state_dict()``
    would lack them as silently as ``model.state_dict()``. Parts without any stay as they are.

    Args:
        model: The loaded model.
        removed: Names of the parameters that were taken out of it.
    """
    modules = dict(model.named_modules())
    for path in sorted({parent for name in removed for parent in _parents(name)}):
        module = modules.get(path)
        if module is None:
            continue  # the experts had modules of their own, which went with them
        for name, advice in _REFUSED.items():
            if name in _SPOKEN or hasattr(module, name):
                module.__dict__[name] = _refusal(name, advice)
        module.__dict__["to"] = _guarded_to(model, module)
        module.__dict__["train"] = _guarded_train(module)
        module.__dict__["requires_grad_"] = _guarded_requires_grad(module)
        # Loading strips the prefix of parts, not of what is missing: an adapter's weights for experts come by here.
        module.register_load_state_dict_pre_hook(_refuse_weights(path, modules))


def _parents(name: str) -> Iterator[str]:
    """The paths of all modules that hold a parameter, from its own to the root's, which is empty."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _refuse_weights(path: str, modules: Mapping[str, nn.Module]) -> Callable[..., None]:
    """A hook for whoever loads weights past :meth:`load_state_dict`, such as peft: those of experts would be lost."""
    children = tuple(f"{name.rpartition('.')[2]}." for name in modules if name and name.rpartition(".")[0] == path)

    def check(module: nn.Module, state_dict: Mapping[str, object], prefix: str, *_: object) -> None:
        own = {*module._parameters, *module._buffers}
        for name in state_dict:
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest not in own and not rest.startswith(children):
                raise UnsupportedError(
                    f"{name} cannot be loaded into a streamed model: it belongs to experts that are not in memory.",
                    advice=_MERGE,
                    operation="load_state_dict",
                    tensor=name,
                )

    return check


def _refusal(name: str, advice: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise UnsupportedError(
            f"{_SPOKEN.get(name, name + '()')} is not possible on a streamed model.", advice=advice, operation=name
        )

    return refuse


def _guarded_to(model: PreTrainedModel, module: nn.Module) -> Callable[..., nn.Module]:
    def to(*args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        moves = device is not None and device.type != model.device.type
        if moves or (dtype is not None and dtype != model.dtype):
            raise UnsupportedError(
                f"to({', '.join(map(str, args))}) is not possible on a streamed model.",
                advice="It stays on the device and in the dtype that coterie.load() gave it.",
                operation="to",
            )
        return module

    return to


def _guarded_train(module: nn.Module) -> Callable[..., nn.Module]:
    def train(mode: bool = True) -> nn.Module:
        if mode:
            raise _no_training("train")
        return type(module).train(module, False)

    return train


def _guarded_requires_grad(module: nn.Module) -> Callable[..., nn.Module]:
    def requires_grad_(requires_grad: bool = True) -> nn.Module:
        if requires_grad:
            raise _no_training("requires_grad_")
        return type(module).requires_grad_(module, False)

    return requires_grad_


def _no_training(operation: str) -> UnsupportedError:
    return UnsupportedError(
        "A streamed model cannot be trained.", advice="Load it with transformers for training.", operation=operation
    )
