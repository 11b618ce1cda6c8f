"""Tensors of a checkpoint that a model has no place for: which are harmless, and which would change its arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["ignored", "left out", "unknown"]
_PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers", "mtp_num_hidden_layers")
"""How a configuration says how many layers predict further tokens; transformers has no use for them."""


class PartsOf:
    """The parts of a model, to which a tensor without a place is compared.

    Args:
        model: The skeleton.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
        self._buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._predicting = _predicting_layers(model.config)
        self._layers: dict[str, int] = {}

    def kind_of(self, name: str) -> Kind:
        """What a tensor that the model has no place for is.

        ``ignored``: a table that the model computes itself, or of a layer that predicts further tokens, as the
        configuration says. ``left out``: of a layer behind the last, or of a part beside the layers that the model
        does not have. ``unknown``: within what the model has, where it would change what that computes.

        Args:
            name: Its name in the model, if it had a place there.
        """
        if name in self._buffers:
            return "ignored"
        parts = name.split(".")
        known = next(
            count for count in range(len(parts) - 1, -1, -1) if not count or ".".join(parts[:count]) in self._modules
        )
        inside, missing = parts[:known], parts[known]
        if any(_is_number(part) for part in inside):
            return "unknown"
        stack = ".".join(inside)
        if _is_number(missing) and f"{stack}.0" in self._modules:
            last = self._length(stack)
            return "ignored" if last <= int(missing) < last + self._predicting else "left out"
        # A parameter of a module that is there, such as a bias, is no part of its own.
        return "unknown" if known == len(parts) - 1 else "left out"

    def _length(self, stack: str) -> int:
        if stack not in self._layers:
            self._layers[stack] = next(n for n in range(len(self._modules) + 1) if f"{stack}.{n}" not in self._modules)
        return self._layers[stack]


def _predicting_layers(config: Any) -> int:
    holders = (config, config.get_text_config())
    stated = [getattr(holder, name, None) for holder in holders for name in _PREDICTING]
    return max((count for count in stated if isinstance(count, int)), default=0)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal()
