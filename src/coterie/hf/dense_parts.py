"""Which part of a model a weight belongs to, such as attention, shared experts, encoders or the talker.

Decided from the structure of the skeleton, for every class alike:

- Where a model speaks, its talker, code predictor and vocoder are known by their configurations.
- The language model is the innermost :class:`~transformers.PreTrainedModel` around the experts. Within its layers,
  what is called with a cache or a mask mixes tokens: that is attention. Everything else in a layer that has experts is
  computed for every token beside them; in a layer that has none it is a dense MLP.
- What makes logits is the head. Everything else around the language model takes in other things than text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from coterie.hf.banks import ExpertBank
from coterie.hf.configs import component_of_class
from coterie.hf.last_logits import output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SPEECH_CONFIGS = {"code_predictor_config": "predictor", "code2wav_config": "vocoder"}
"""Attribute of a configuration → the part that it describes."""
_TALKER = "talker"
_TOWERS = ("vision", "audio")
"""Components whose experts are those of an encoder."""
_CACHE, _MASK = ("cache", "past_key_value"), ("mask",)
"""What the names of arguments contain that layers which mix tokens are called with."""


class DenseParts:
    """The part of each weight of a model; the names are those of :data:`coterie.spec.dense_parts.DENSE_PARTS`.

    Args:
        model: The skeleton.
        banks: Its banks of experts.
    """

    def __init__(self, model: PreTrainedModel, banks: Collection[ExpertBank]) -> None:
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._banks = [place.path for bank in banks for place in (bank, *map(bank.at, bank.tied))]
        # A module belongs to the part that it, or the nearest module around it, has here.
        self._parts: dict[str, str] = {}
        is_talker = component_of_class(type(model), model.config) == _TALKER
        speech = self._speech(model)
        self._parts.update(speech)
        if is_talker:
            self._parts[""] = _TALKER
            return
        for path in {""} if getattr(model.config, "is_encoder_decoder", False) else self._language_models(banks):
            self._mark_language_model(path)
        routers = [path for bank in banks for path in router_paths(model, bank)]
        self._parts.update(dict.fromkeys(self._heads(speech), "head"))
        self._parts.update((path, "routers") for path in routers if not any(_is_within(path, one) for one in speech))
        self._parts.setdefault("", "encoders" if self._has_towers() else "head")

    def of(self, name: str) -> str:
        """The part of a parameter or a buffer.

        Args:
            name: Its full name in the model.
        """
        path = name.rpartition(".")[0]
        module = self._modules.get(path)
        part = self._nearest(path)
        if part not in ("head", "mlp", "shared_experts") or isinstance(module, nn.Linear):
            return part
        return "embeddings" if isinstance(module, nn.Embedding) else "norms"

    def _nearest(self, path: str) -> str:
        while path not in self._parts:
            path = path.rpartition(".")[0]
        return self._parts[path]

    def _speech(self, model: PreTrainedModel) -> dict[str, str]:
        """The parts that speak, by path: the talker, and what makes sound of its tokens."""
        from transformers import PreTrainedModel  # imports torch's compiler in old releases

        models = {path: one for path, one in self._modules.items() if isinstance(one, PreTrainedModel)}
        parts = {
            type(config): part
            for one in models.values()
            for name, part in _SPEECH_CONFIGS.items()
            if (config := getattr(one.config, name, None)) is not None
        }
        found = {path: part for path, one in models.items() if path and (part := parts.get(type(one.config)))}
        return found | ({_TALKER: _TALKER} if _TALKER in models else {})

    def _language_models(self, banks: Collection[ExpertBank]) -> set[str]:
        """Paths of the language models."""
        from transformers import PreTrainedModel

        found = set()
        for place in (place for bank in banks for place in (bank, *map(bank.at, bank.tied))):
            if place.key.component in (_TALKER, *_TOWERS):
                continue
            path = place.path.rpartition(".")[0]
            while not isinstance(self._modules[path], PreTrainedModel):
                path = path.rpartition(".")[0]
            found.add(path)
        return found

    def _mark_language_model(self, path: str) -> None:
        """Marks its layers, the outermost lists of modules, and in them the outermost modules that mix tokens."""
        self._parts[path] = "mlp"
        layer = mixer = None
        for name, module in self._modules.items():
            if not name or not _is_within(name, path):
                continue
            if layer is None or not _is_within(name, layer):
                in_list = isinstance(self._modules[name.rpartition(".")[0]], nn.ModuleList)
                layer, mixer = name if in_list else None, None
                if in_list:
                    self._parts[name] = "shared_experts" if self._has_experts(name) else "mlp"
            elif (mixer is None or not _is_within(name, mixer)) and self._mixes(name, module):
                mixer = name
                self._parts[name] = "attention"

    def _has_experts(self, path: str) -> bool:
        return any(_is_within(bank, path) for bank in self._banks)

    def _mixes(self, path: str, module: nn.Module) -> bool:
        takes_cache, takes_mask = _taken(type(module).forward)
        # A block of experts may be told of padding.
        return takes_cache or (takes_mask and not self._has_experts(path))

    def _heads(self, speech: Collection[str]) -> Iterator[str]:
        """Paths of what makes logits, those of the parts that speak left out."""
        from transformers import PreTrainedModel

        own = {path: one for path, one in self._modules.items() if not any(_is_within(path, part) for part in speech)}
        models = (one for one in own.values() if isinstance(one, PreTrainedModel))
        heads = {id(head) for one in models if (head := output_head(one)) is not None}
        yield from (path for path, module in own.items() if id(module) in heads)

    def _has_towers(self) -> bool:
        """Whether there are models within the model that neither are in a part, nor have one in them."""
        from transformers import PreTrainedModel

        return any(
            isinstance(one, PreTrainedModel)
            and not any(_is_within(path, known) or _is_within(known, path) for known in self._parts)
            for path, one in self._modules.items()
        )


@functools.cache
def _taken(forward: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a forward is called with a cache, and whether with a mask."""
    names = inspect.signature(forward).parameters
    cache, mask = (any(part in name for part in parts for name in names) for parts in (_CACHE, _MASK))
    return cache, mask


def router_paths(model: PreTrainedModel, bank: ExpertBank) -> Iterator[str]:
    """Paths of the modules that score a bank's experts: those near it that have a row, or an output, for each."""
    experts = {name for place in (bank, *map(bank.at, bank.tied)) for names in place.targets.values() for name in names}
    counts = (bank.num_experts, bank.num_experts + bank.identities)
    for place in (bank, *map(bank.at, bank.tied)):
        for parent in (place.router_block, place.router_block.rpartition(".")[0]):
            linear = False
            for path, module in model.get_submodule(parent).named_modules(prefix=parent):
                if isinstance(module, nn.Linear):
                    if int(module.out_features) in counts:
                        linear = True
                        yield path
                elif not any(isinstance(one, nn.Linear) for one in module.modules()) and any(
                    f"{path}.{name}" not in experts and one is not None and one.dim() == 2 and len(one) in counts
                    for name, one in module._parameters.items()
                ):
                    yield path
            if linear:
                break


def _is_within(path: str, outer: str) -> bool:
    """Whether a module is another one, or is in it."""
    return not outer or path == outer or path.startswith(f"{outer}.")
