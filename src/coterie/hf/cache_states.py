"""What a cache of keys and values holds of some of its tokens: taken out of it, put into another, cut off, copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.hf.caches import own_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the layers of a cache hold of the tokens of one stretch, as copies.

    Attributes:
        begin: Tokens before it.
        end: Tokens before what follows it.
        layers: Keys and values of each layer; None of one that has none of its own. Of a layer with a sliding window,
            those that are within the window at the end of the stretch.
    """

    begin: int
    end: int
    layers: tuple[tuple[Tensor, Tensor] | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(tensor.nbytes for layer in self.layers if layer is not None for tensor in layer)


def whole_layers(cache: Any) -> bool:
    """Whether every layer keeps every token, so that tokens can be cut off at the end."""
    return _all_of(cache, sliding=False)


def keeps_every_token(model: PreTrainedModel) -> bool:
    """Whether the cache of a sequence has :func:`known_layers`, with the model's own settings."""
    from transformers import DynamicCache

    config, settings = model.config, model.generation_config
    if config.is_encoder_decoder or settings.use_cache is False:
        return False
    if settings.cache_implementation not in (None, "dynamic") or not model._supports_default_dynamic_cache():
        return False
    return known_layers(DynamicCache(config=config.get_text_config(decoder=True))) and not own_keys(model)


def known_layers(cache: Any) -> bool:
    """Whether every layer keeps every token, or those within a sliding window.

    Others keep a state that goes on with every token (linear attention), or lay their memory out in another way.
    """
    return _all_of(cache, sliding=True)


def _all_of(cache: Any, *, sliding: bool) -> bool:
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer) if sliding else (DynamicLayer,)
    # A class derived from one of these may keep more.
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


def stretch_nbytes(cache: Any, begin: int, end: int) -> int:
    """Bytes that :func:`stretch` would copy."""
    total = 0
    for layer in cache.layers:
        if layer.is_initialized and layer.keys.numel():
            tokens = layer.keys.shape[-2] if layer.is_sliding else end - begin
            total += (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[-2] * tokens
    return total


def stretch(cache: Any, begin: int, end: int) -> Stretch:
    """Copies what a cache holds of a stretch; the cache must end there if some of its layers have a window.

    Args:
        cache: One with :func:`known_layers`.
        begin: Tokens before the stretch.
        end: Tokens before what follows it.
    """
    layers: list[tuple[Tensor, Tensor] | None] = []
    for layer in cache.layers:
        if not layer.is_initialized:
            layers.append(None)
        elif layer.is_sliding:
            layers.append((layer.keys.clone(), layer.values.clone()))
        else:
            layers.append((layer.keys[..., begin:end, :].clone(), layer.values[..., begin:end, :].clone()))
    return Stretch(begin, end, tuple(layers))


def fill(cache: Any, stretches: Iterable[Stretch]) -> None:
    """Puts stretches that follow one another into a cache, after what it holds.

    Args:
        cache: One with :func:`known_layers`, which ends where the first of them begins.
        stretches: At least one.
    """
    parts = tuple(stretches)
    for number in range(len(parts[0].layers)):
        held = [layer for part in parts if (layer := part.layers[number]) is not None]
        if not held:
            continue
        if number < len(cache.layers) and (layer := cache.layers[number]).is_sliding:
            # What has left the window has been seen as well.
            if layer.is_initialized:
                layer.keys, layer.values = (tensor.clone() for tensor in held[-1])
            else:
                cache.update(*held[-1], number)
            layer.cumulative_length = parts[-1].end
        else:
            cache.update(*(torch.cat(tensors, dim=-2) for tensors in zip(*held, strict=True)), number)


def copied(cache: Any) -> Any | None:
    """A copy of a cache that shares no memory with it; None of one that holds what is not known to be plain data.

    Args:
        cache: Of any kind: such as one with states of linear attention, or with memory that was laid out ahead.
    """
    if not type(cache).__module__.startswith("transformers."):
        return None
    try:
        return _copy_of(cache, {"layers": [_copy_of(layer) for layer in cache.layers]})
    except (AttributeError, _StrangeError):
        return None


def copied_nbytes(cache: Any) -> int:
    """Bytes that :func:`copied` would copy."""
    return sum(_nbytes(value) for part in (cache, *cache.layers) for value in vars(part).values())


class _StrangeError(Exception):
    """A value is not known to be plain data."""


def _copy_of(thing: Any, known: Mapping[str, Any] | None = None) -> Any:
    """An object of the same class with copies of its attributes."""
    made = copy(thing)
    for name, value in vars(thing).items():
        vars(made)[name] = known[name] if known is not None and name in known else _copy_of_value(value)
    return made


def _copy_of_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if value is None or isinstance(value, bool | int | float | str | type | torch.dtype | torch.device):
        return value
    if type(value) in (list, tuple):
        return type(value)(_copy_of_value(one) for one in value)
    if isinstance(value, dict):
        return type(value)((name, _copy_of_value(one)) for name, one in value.items())
    raise _StrangeError


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return int(value.nbytes)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_nbytes, parts))


def cut(cache: Any, length: int) -> None:
    """Leaves the first tokens in a cache with :func:`whole_layers`, also where a pass was broken off within it."""
    for layer in cache.layers:
        if layer.is_initialized and layer.keys.numel() and layer.keys.shape[-2] > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


class Mark:
    """Where a cache with :func:`known_layers` stands before a pass of one token.

    Args:
        cache: The cache.
    """

    __slots__ = ("_cache", "_layers")

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._layers: list[tuple[int, int, tuple[Tensor, Tensor] | None]] = []
        for layer in cache.layers:
            held = layer.keys.shape[-2] if layer.is_initialized and layer.keys.numel() else 0
            self._layers.append((held, int(layer.get_seq_length()), _oldest(layer) if held else None))

    def put_back(self) -> None:
        """Takes the token of the pass off again, in those layers that have it, as nobody needs it."""
        for layer, (held, seen, oldest) in zip(self._cache.layers, self._layers, strict=True):
            if not held or int(layer.get_seq_length()) == seen:
                continue
            keys, values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
            if keys.shape[-2] < held and oldest is not None:  # it has left the window
                keys, values = torch.cat([oldest[0], keys], dim=-2), torch.cat([oldest[1], values], dim=-2)
            layer.keys, layer.values = keys, values
            if layer.is_sliding:
                layer.cumulative_length = seen


def _oldest(layer: Any) -> tuple[Tensor, Tensor] | None:
    """The token that may leave a layer's window."""
    return (layer.keys[..., :1, :].clone(), layer.values[..., :1, :].clone()) if layer.is_sliding else None
