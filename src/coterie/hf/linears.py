"""Which weights outside experts are those of linear layers, and may be stored in fewer bits.

Decided from the modules of the skeleton. What decides about other computations keeps its dtype: routers and gates, and
all of the parts that turn a talker's tokens into sound, where small errors add up from frame to frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from coterie.hf.banks import ExpertBank
from coterie.hf.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedModel

_FEWEST_OUTPUTS = 16
"""Layers with fewer outputs are gates (one for a shared expert, one per head, ...) and have next to no bytes."""

_SPEECH_CONFIGS = ("code_predictor_config", "code2wav_config")


def linear_weights(model: PreTrainedModel, keymap: KeyMap) -> dict[str, tuple[int, int]]:
    """The weights of linear layers that a scheme may be applied to.

    Left out are routers and gates, the talker's code predictor and vocoder, weights that are tied to an embedding or to
    each other, weights that transformers keeps in another dtype than the model's, and those that it rearranges on
    loading.

    Args:
        model: The skeleton.
        keymap: The claims of its checkpoint's tensors.

    Returns:
        Checkpoint name → outputs and inputs.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    left_out = {*tied, *tied.values(), *(f"{path}.weight" for path in _router_paths(model, keymap.banks))}
    upcast = tuple(model._get_dtype_plan(model.dtype))
    speech = tuple(_speech_paths(model))
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    shapes: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        # Subclasses and parametrised ones compute in their own way; what is in two places cannot be replaced in one.
        if type(module) is not nn.Linear or "weight" not in module._parameters or places[id(module)] > 1:
            continue
        name = f"{path}.weight"
        kept = name in left_out or path.startswith(speech) or any(part in name for part in upcast)
        outputs, inputs = module.weight.shape
        if not kept and outputs >= _FEWEST_OUTPUTS and module.weight.dtype == model.dtype:
            shapes[name] = (outputs, inputs)
    return {
        name: shapes[target]
        for name, target in keymap.dense.items()
        if target in shapes and name not in keymap.rearranged
    }


def _router_paths(model: PreTrainedModel, banks: Collection[ExpertBank]) -> Iterator[str]:
    """Linear layers that score experts: those near a bank with as many outputs as it has experts."""
    for bank in banks:
        for place in (bank, *map(bank.at, bank.tied)):
            count = bank.num_experts + bank.identities
            for parent in (place.router_block, place.router_block.rpartition(".")[0]):
                found = [
                    f"{parent}.{path}" if parent else path
                    for path, module in model.get_submodule(parent).named_modules()
                    if isinstance(module, nn.Linear) and int(module.out_features) in (bank.num_experts, count)
                ]
                yield from found
                if found:
                    break


def _speech_paths(model: PreTrainedModel) -> Iterator[str]:
    """The parts that make sound of a talker's tokens, each path with a dot at its end."""
    from transformers import PreTrainedModel  # imports torch's compiler in old releases

    parts = {path: module for path, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    configs = {
        type(found)
        for module in parts.values()
        for name in _SPEECH_CONFIGS
        if (found := getattr(module.config, name, None)) is not None
    }
    for path, module in parts.items():
        if path and type(module.config) in configs:
            yield f"{path}."
