"""Room for a key-value cache to grow in: a token is appended without copying the tokens before it.

transformers' ``DynamicCache`` makes new tensors of all keys and values for each new token. Here they lie in larger
tensors, of which the cache has views; only what one cache has never written is written, so that caches that share
tensors do not see each other's tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from coterie.native import KeyValueRoom

_STEP = 256
"""Tokens by which the room grows."""

_AHEAD = 16
"""Lengths that views are made for at once: between two layers of a large model the processor's caches forget all, and
one view takes as long as these."""

_PLACE = "_coterie_room"

_Views = tuple[torch.Tensor, torch.Tensor]


class GrowingRoom:
    """Tensors that a layer's keys and values lie at the start of.

    Args:
        keys: What is there, [rows, heads, tokens, width].
        values: Likewise.
    """

    __slots__ = ("_coming", "_given", "_keys", "_most", "_row_nbytes", "_rows", "_strides", "_used", "_values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._used = keys.shape[2]
        self._most = (self._used // _STEP + 1) * _STEP
        # Written in later steps too, whether or not these are in inference mode.
        with torch.inference_mode(False):
            self._keys, self._values = (
                torch.empty(*one.shape[:2], self._most, one.shape[3], dtype=one.dtype, device="cpu")
                for one in (keys, values)
            )
        self._keys[:, :, : self._used] = keys
        self._values[:, :, : self._used] = values
        self._given: _Views | None = None
        # Views for the lengths that come next, the next one last.
        self._coming: list[_Views] = []
        self._rows = keys.shape[0]
        self._row_nbytes = self._keys.stride(0) * self._keys.element_size()
        self._strides = self._keys.stride(1), self._values.stride(1)

    def serves(self, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether these are the tensors that it gave last, and there is room for one more token."""
        given = self._given
        return given is not None and keys is given[0] and values is given[1] and self._used < self._most

    @property
    def used(self) -> int:
        """Tokens that are there."""
        return self._used

    def one_token(self) -> _Views:
        """As much memory as one token of one row takes, which belongs to nobody."""
        return torch.zeros_like(self._keys[:1, :, :1]), torch.zeros_like(self._values[:1, :, :1])

    @property
    def views(self) -> _Views:
        """Keys and values as they are now, for the cache to have instead of those that were given."""
        self._given = given = self._keys.narrow(2, 0, self._used), self._values.narrow(2, 0, self._used)
        return given

    @property
    def next_place(self) -> KeyValueRoom:
        """Where those of the first row lie with one more token, which is not theirs yet."""
        return KeyValueRoom(self._keys.data_ptr(), self._values.data_ptr(), *self._strides, self._used + 1)

    def longer(self) -> _Views:
        """Keys and values with one more token of each row, which the caller writes."""
        if not self._coming:
            last = min(self._used + _AHEAD, self._most)
            self._coming = [
                (self._keys.narrow(2, 0, end), self._values.narrow(2, 0, end)) for end in range(last, self._used, -1)
            ]
        self._used += 1
        self._given = given = self._coming.pop()
        return given

    @property
    def places(self) -> list[KeyValueRoom]:
        """Where those of each row lie, and how many tokens they are."""
        # Addresses are not kept: a copy of this has other ones.
        keys, values, step = self._keys.data_ptr(), self._values.data_ptr(), self._row_nbytes
        return [
            KeyValueRoom(keys + row * step, values + row * step, *self._strides, self._used)
            for row in range(self._rows)
        ]


def extend(
    cache: Any, layer_idx: int, rows: int, heads: int, width: int, *, length: int | None = None
) -> list[KeyValueRoom] | None:
    """Makes a layer of a plain dynamic cache longer by one token, whose keys and values the caller writes.

    Args:
        cache: Of transformers.
        layer_idx: Layer of the cache.
        rows: Sequences.
        heads: Heads of the key that will be written.
        width: Values of each.
        length: Tokens that it has then; None for any number.

    Returns:
        Where all keys and values of each sequence lie; None if the cache is of another kind, empty, has another length,
        or keeps other things than bfloat16 of that shape, and nothing was done.
    """
    layer = _plain_layer(cache, layer_idx)
    if layer is None:
        return None
    room: GrowingRoom | None = layer.__dict__.get(_PLACE)
    keys, values = layer.keys, layer.values
    if length is not None and keys.shape[2] + 1 != length:
        return None
    if room is None or not room.serves(keys, values):
        like = _like(keys, rows, heads, width) and _like(values, rows, heads, width)
        if not like or keys.shape != values.shape:
            return None
        room = layer.__dict__[_PLACE] = GrowingRoom(keys, values)
    layer.keys, layer.values = room.longer()
    return room.places


def room_ahead(cache: Any, layer_idx: int, heads: int, width: int) -> GrowingRoom | None:
    """Room for one more token of one sequence in a layer of a plain dynamic cache, which does not become longer.

    Args:
        cache: Of transformers.
        layer_idx: Layer of the cache.
        heads: Heads of the key that will be written.
        width: Values of each.

    Returns:
        None where :func:`extend` would do nothing.
    """
    layer = _plain_layer(cache, layer_idx)
    if layer is None:
        return None
    room: GrowingRoom | None = layer.__dict__.get(_PLACE)
    keys, values = layer.keys, layer.values
    if room is None or not room.serves(keys, values):
        if not _like(keys, 1, heads, width) or not _like(values, 1, heads, width) or keys.shape != values.shape:
            return None
        # At once: of all layers together, what was and what is to be would be in memory twice.
        room = layer.__dict__[_PLACE] = GrowingRoom(keys, values)
        layer.keys, layer.values = room.views
    return room


def _like(kept: torch.Tensor, rows: int, heads: int, width: int) -> bool:
    """Whether a layer keeps tensors that such a key can be appended to."""
    return (
        kept.dim() == 4
        and kept.shape[0] == rows
        and kept.shape[2] > 0
        and kept.shape[1] == heads
        and kept.shape[3] == width
        and kept.dtype is torch.bfloat16
        and kept.is_cpu
    )


def _plain_layer(cache: Any, layer_idx: int) -> Any:
    """A layer that keeps all tokens in two tensors in memory, and has some; None if it is anything else."""
    plain_cache, plain_layer = _plain_types()
    kind: type[Any] = type(cache)
    if kind is not plain_cache or getattr(cache, "offloading", False) or layer_idx >= len(cache.layers):
        return None
    layer: Any = cache.layers[layer_idx]
    of_layer: type[Any] = type(layer)
    return layer if of_layer is plain_layer and layer.is_initialized else None


@functools.cache
def _plain_types() -> tuple[type, type]:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return DynamicCache, DynamicLayer
