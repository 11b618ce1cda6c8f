"""What of a model mixes a sequence's tokens, and what it is called with: attention, with its cache.

Everything else in a decoder computes each token by itself, whatever else is in its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from coterie.hf.cache_states import known_layers
from coterie.hf.caches import is_cache, own_keys
from coterie.hf.rotary_lengths import goes_by_length
from coterie.hf.row_caches import RowsApartError

_CACHES = frozenset({"cache", "cache_params", "past_key_value", "past_key_values"})
"""What releases and classes call the argument that a cache comes in."""
_LAYER = "layer_idx"
_HIDDEN = "hidden_states"
_POSITIONS, _PLACES, _MASK = "position_ids", "cache_position", "mask"
_ROTARY = ("position_embeddings", "freqs_cis")
"""What begins the names of arguments that say where tokens are: [..., rows, tokens, width]."""
_KNOWN = frozenset({_HIDDEN, _POSITIONS, _PLACES, *_CACHES, "attention_mask", "use_cache", "output_attentions"})
"""Other arguments of which it is known what each row has of them."""


class Mixer:
    """A module that reads and writes one layer of a cache.

    Args:
        module: The module.

    Attributes:
        module: That given.
        layer_idx: Its layer of a cache.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layer_idx: int = getattr(module, _LAYER)
        # Of a bound method, so without the module.
        self._names = tuple(_parameters(module.forward))

    @property
    def strange(self) -> str | None:
        """An argument of which it is not known what each row has of it."""
        parameters = inspect.signature(self.module.forward).parameters.values()
        named = (one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD)
        return next((name for name in named if name not in _KNOWN and not name.startswith(_ROTARY)), None)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What it is called with, by name."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def hidden(self, given: Mapping[str, Any]) -> torch.Tensor:
        """What it mixes, [rows, 1, width].

        Raises:
            RowsApartError: If that cannot be told.
        """
        hidden = given.get(_HIDDEN)
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3 or hidden.shape[1] != 1:
            raise RowsApartError(f"{self} is not given {_HIDDEN} of one token of each sequence.")
        return hidden

    def of_row(
        self, given: Mapping[str, Any], row: int, *, rows: int, hidden: torch.Tensor, cache: Any, length: int
    ) -> dict[str, Any]:
        """What it is called with for one row alone.

        Args:
            given: What it is called with for all.
            row: Which one.
            rows: How many there are.
            hidden: What it mixes of that row, [1, 1, width].
            cache: The row's own.
            length: Tokens before its new one.

        Raises:
            RowsApartError: If something is given of which it is not known what each row has of it.
        """
        kept = cache.get_mask_sizes(1, self.layer_idx)[0]
        own: dict[str, Any] = {}
        for name, value in given.items():
            if name == _HIDDEN:
                own[name] = hidden
            elif value is None or isinstance(value, (bool, int, float, str)):
                own[name] = value
            elif is_cache(value):
                own[name] = cache
            elif name == _PLACES:
                own[name] = torch.arange(length, length + 1, device=hidden.device)
            elif _MASK in name and isinstance(value, torch.Tensor):
                own[name] = self._mask(name, value, row, kept if value.dim() == 4 else length + 1, rows)
            elif name == _POSITIONS and isinstance(value, torch.Tensor):
                own[name] = self._slice(name, value, -2, row, rows)
            elif name.startswith(_ROTARY):
                own[name] = self._rotary(name, value, row, rows)
            else:
                raise RowsApartError(f"{self} is given {name}, a {type(value).__name__}.")
        return own

    def _mask(self, name: str, mask: torch.Tensor, row: int, kept: int, rows: int) -> torch.Tensor | None:
        """A row's, of a batch that is padded at the beginning."""
        if mask.dim() not in (2, 4) or mask.shape[-1] < kept:
            raise RowsApartError(f"{self} is given a {name} of the shape {tuple(mask.shape)}; {kept} tokens are kept.")
        own = self._slice(name, mask, 0, row, rows)[..., mask.shape[-1] - kept :]
        return None if own.dtype is torch.bool and bool(own.all()) else own

    def _rotary(self, name: str, value: Any, row: int, rows: int) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self._rotary(name, one, row, rows) for one in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 3:
            raise RowsApartError(f"{self} is given {name}, a {type(value).__name__}.")
        return self._slice(name, value, -3, row, rows)

    def _slice(self, name: str, value: torch.Tensor, dim: int, row: int, rows: int) -> torch.Tensor:
        size = value.shape[dim]
        if size not in (1, rows):
            raise RowsApartError(f"{self} is given {name} of the shape {tuple(value.shape)} for {rows} sequences.")
        return value if size == 1 else value.narrow(dim, row, 1)

    def __str__(self) -> str:
        return type(self.module).__name__


def mixers(model: nn.Module) -> list[Mixer]:
    """The modules of a model that read and write a cache, in the order of its layers."""
    found = [module for module in model.modules() if _takes_cache(module)]
    inner = [one for one in found if not any(other is not one and _within(other, one) for other in found)]
    return sorted((Mixer(module) for module in inner), key=lambda mixer: mixer.layer_idx)


def why_not_apart(model: Any, found: list[Mixer]) -> str | None:
    """Why the mixers of a model cannot be called for each row of a batch by itself; None if they can.

    Args:
        model: The model, with weights or without.
        found: Its :func:`mixers`.
    """
    from transformers import DynamicCache

    config = model.config
    if config.is_encoder_decoder:
        return "it has an encoder for texts"
    if any(map(goes_by_length, model.modules())):
        return "its rotary embedding goes by the longest sequence"
    if not found or [mixer.layer_idx for mixer in found] != list(range(len(found))):
        return "its layers are not of the kind that transformers has a cache for"
    if own_keys(model) or not known_layers(DynamicCache(config=config.get_text_config(decoder=True))):
        return "some of its layers keep other things than keys and values, such as a state"
    for mixer in found:
        if mixer.strange:
            return f"{mixer} is given {mixer.strange}"
    experts = next((mixer for mixer in found if any(_is_experts(one) for one in mixer.module.modules())), None)
    return None if experts is None else f"{experts} has experts itself"


def _takes_cache(module: nn.Module) -> bool:
    return isinstance(getattr(module, _LAYER, None), int) and not _CACHES.isdisjoint(_parameters(type(module).forward))


def _parameters(forward: Callable[..., Any]) -> Iterator[str]:
    return iter(inspect.signature(forward).parameters)


def _within(inner: nn.Module, outer: nn.Module) -> bool:
    return any(one is inner for one in outer.modules())


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "num_experts") and bool(list(module.children()) or list(module.parameters()))
