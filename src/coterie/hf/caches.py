"""Caches of keys and values, known by what they are: releases differ in the name of the argument that carries one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

OWN_KEYS = "_cached_keys"
"""What a module keeps of the sequence that it saw last, where it does: :func:`own_keys`."""

_DEEPEST = 2
"""Containers within containers that are looked into: an output that holds an output that holds a cache."""


def is_cache(value: object) -> bool:
    """Whether this is one of transformers' caches, or something that counts its tokens as they do."""
    return isinstance(value, _cache_class()) or callable(getattr(type(value), "get_seq_length", None))


def caches_in(values: Iterable[object]) -> list[Any]:
    """Every cache among these values, and within tuples, lists and mappings among them; each once."""
    found: list[Any] = []
    for value in _flat(values, _DEEPEST):
        if is_cache(value) and all(value is not one for one in found):
            found.append(value)
    return found


def strangers_in(values: Iterable[object]) -> list[object]:
    """What may be a cache of a kind that is not known: neither plain data, nor torch's, nor numpy's."""
    return [value for value in _flat(values, _DEEPEST) if not _plain(value) and not is_cache(value)]


def cached_length(cache: Any) -> int | None:
    """Tokens of each sequence that a cache has seen; None if none of its layers counts them.

    Those of linear attention do not: their states have one size, however much they have seen.
    """
    layers = getattr(cache, "layers", None) or ()
    if not layers or hasattr(layers[0], "get_seq_length"):
        length = int(cache.get_seq_length())
        if length or not layers:
            return length
    # Most caches ask their first layer, which in some models has a state instead, or stays empty.
    counting = [layer for layer in layers if hasattr(layer, "get_seq_length")]
    return max((int(layer.get_seq_length()) for layer in counting), default=0) if counting else None


def counts_tokens(cache: Any) -> bool:
    """Whether every layer of a cache keeps tokens, rather than a state of one size."""
    if any(getattr(cache, name, None) is not None for name in ("self_attention_cache", "cross_attention_cache")):
        return False
    layers = getattr(cache, "layers", None)
    return layers is not None and not any(
        hasattr(layer, "has_previous_state") or not hasattr(layer, "get_seq_length") for layer in layers
    )


def reserved_length(cache: Any) -> int:
    """Tokens of each sequence that a cache has memory for from its first use on; 0 for one that grows."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    if any(part is not None for part in parts):
        return sum(reserved_length(part) for part in parts if part is not None)
    lengths = (getattr(layer, "max_cache_len", None) for layer in getattr(cache, "layers", None) or ())
    return max((length for length in lengths if isinstance(length, int)), default=0)


def empty(cache: Any) -> None:
    """Frees what a cache holds; it cannot be used afterwards."""
    for name in ("self_attention_cache", "cross_attention_cache"):
        if (part := getattr(cache, name, None)) is not None:
            empty(part)
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list):
        layers.clear()


def let_go_of_kept(model: Any) -> None:
    """Has a model forget the static cache that ``generate`` keeps for the next call, and how long it was."""
    for name in ("_cache", "_previous_max_cache_length"):
        model.__dict__.pop(name, None)


def holds_state(cache: Any) -> bool:
    """Whether a cache that does not count tokens has seen any."""
    for layer in getattr(cache, "layers", ()):
        seen = getattr(layer, "has_previous_state", False)
        if any(seen.values()) if isinstance(seen, Mapping) else seen:
            return True
    return False


def _flat(values: Iterable[object], depth: int) -> Iterator[object]:
    for value in values:
        if isinstance(value, Mapping) and not is_cache(value):
            inner: Iterable[object] = value.values()
        elif isinstance(value, (tuple, list)):
            inner = value
        else:
            yield value
            continue
        if depth:
            yield from _flat(inner, depth - 1)


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.Tensor)
_PLAIN_PACKAGES = frozenset({"torch", "numpy", "builtins"})


def _plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or type(value).__module__.partition(".")[0] in _PLAIN_PACKAGES


@functools.cache
def _cache_class() -> type:
    from transformers.cache_utils import Cache

    found: type = Cache
    return found


def own_keys(model: nn.Module) -> list[nn.Module]:
    """Modules that keep keys of the sequence that they saw last on themselves, beside its cache.

    So the indexers of GLM-MoE-DSA do in older releases of transformers. A pass of several tokens begins them anew.

    Args:
        model: The model, with weights or without.
    """
    return [module for module in model.modules() if OWN_KEYS in module._buffers]
