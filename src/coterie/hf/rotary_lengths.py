"""Rotary embeddings whose frequencies go by how long a sequence is, and what a model keeps of them on itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_BY_LENGTH = ("dynamic", "longrope")
_KEEPS = "dynamic"
"""The kind that keeps the frequencies of the longest sequence it has seen."""
_LONGEST, _FREQUENCIES, _ORIGINAL = "max_seq_len_cached", "inv_freq", "original_"


def goes_by_length(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding that has one set of frequencies for all rows, by the longest of them."""
    return any(kind in name for kind in _BY_LENGTH for name in _kinds(getattr(module, "rope_type", None)))


class Frequencies:
    """Frequencies of one sequence, as its model keeps them: several sequences have one model.

    They begin as those of a model that has seen nothing. In transformers a sequence has those of the longest one before
    it, if both are longer than the model was made for.

    Args:
        model: The model.
    """

    __slots__ = ("_kept",)

    def __init__(self, model: Any) -> None:
        self._kept: list[tuple[dict[str, Any], str, Any]] = []
        for module in _keeping(model):
            for name, frequencies in module._buffers.items():
                if name.endswith(_FREQUENCIES) and _ORIGINAL not in name:
                    original = module._buffers.get(name.replace(_FREQUENCIES, _ORIGINAL + _FREQUENCIES))
                    self._kept.append((module._buffers, name, frequencies if original is None else original.clone()))
            space = vars(module)
            length = space.get("original_max_seq_len")
            self._kept.extend((space, name, length) for name in space if name.endswith(_LONGEST))

    def put_back(self) -> None:
        """Has the model keep what it kept."""
        for space, name, value in self._kept:
            space[name] = value

    def note(self) -> None:
        """Remembers what it keeps now."""
        if self._kept:
            self._kept = [(space, name, space[name]) for space, name, _ in self._kept]


def _keeping(model: Any) -> Iterator[nn.Module]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not any(_KEEPS in name for name in _kinds(getattr(text, "rope_parameters", None))):
        return
    for module in model.modules():
        if any(_KEEPS in name for name in _kinds(getattr(module, "rope_type", None))):
            yield module


def _kinds(said: Any) -> list[str]:
    """The kinds of rotary embedding that a module or configuration names, for all layers or for each kind of them."""
    if isinstance(said, dict):
        return [kind for value in said.values() for kind in _kinds(value)]
    return [said] if isinstance(said, str) else []
