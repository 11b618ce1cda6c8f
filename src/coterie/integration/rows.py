"""Next tokens of several sequences in one pass: which models compute them with the bits of each alone, and where to.

They do where every decoder layer is native: its products, norms, rotations and choices have the same bits whatever the
number of rows, and each row attends to a cache of its own. The norm and the head after the layers have to be so, too.
Whatever else is between layers, such as an embedding or a sum, is computed value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from coterie.hf.last_logits import output_head
from coterie.integration.growing_cache import GrowingRoom, room_ahead
from coterie.integration.row_rooms import RowRooms
from coterie.integration.token_layer import TokenLayer
from coterie.kernels import QuantisedLinear
from coterie.kernels.dense import NormForward
from coterie.native import MOST_ROWS
from coterie.passes.forwards import at, own

_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies, one set for all rows, go by the longest sequence."""


class RowLayers:
    """The decoder layers of a model that computes rows together.

    Args:
        layers: In order.

    Attributes:
        most: Rows of a pass at most.
    """

    most = MOST_ROWS

    def __init__(self, layers: Sequence[TokenLayer]) -> None:
        self._layers = tuple(layers)

    @classmethod
    def of(cls, model: nn.Module) -> RowLayers | None:
        """None for a model that gives rows other bits together than alone.

        Args:
            model: A model with its experts connected.
        """
        stacks = [stack for stack in _lists(model) if any(isinstance(own(layer), TokenLayer) for _, layer in stack[1])]
        if len(stacks) != 1:
            return None
        decoder, named = stacks[0]
        layers: list[TokenLayer] = []
        for number, (_, module) in enumerate(named):
            layer = at(module, "native")
            if not isinstance(layer, TokenLayer) or not layer.takes_rows or layer.layer_idx != number:
                return None
            layers.append(layer)
        head, norm = output_head(model), getattr(decoder, "norm", None)
        if not isinstance(head, QuantisedLinear) or head.packed is None or own(head) is not None:
            return None
        if norm is None or not isinstance(own(norm), NormForward) or any(map(_by_length, decoder.modules())):
            return None
        return cls(layers)

    def rooms(self, caches: Sequence[Any], lengths: Sequence[int], let_go: Callable[[int], None]) -> RowRooms | None:
        """Room for another token of each sequence; None if one has a cache of another kind.

        Args:
            caches: Their caches.
            lengths: Tokens in each.
            let_go: As :class:`RowRooms` takes it.
        """
        if any(len(cache.layers) != len(self._layers) for cache in caches if hasattr(cache, "layers")):
            return None
        rooms: list[list[GrowingRoom | None]] = []
        for layer in self._layers:
            row = [room_ahead(cache, layer.layer_idx, *layer.kept) for cache in caches]
            if any(room is None or room.used != length for room, length in zip(row, lengths, strict=True)):
                return None
            rooms.append([*row])
        return RowRooms(caches, lengths, rooms, let_go)


def rows_together(model: nn.Module) -> int:
    """Sequences whose next tokens go through a model in one pass, each with the bits that it has alone; 1 for no more.

    More than one do in models with decoder layers as Qwen3-MoE has them, such as Qwen3-Omni's thinker, that are opened
    from a store whose experts and linear layers are in int4 or int8, with the native library. In all others, each row
    is computed as it is alone: rows of torch's products have other bits in another number.

    Args:
        model: From :func:`coterie.load`.
    """
    layers = RowLayers.of(model)
    return 1 if layers is None else layers.most


def _lists(model: nn.Module) -> Iterator[tuple[nn.Module, list[tuple[str, nn.Module]]]]:
    """Lists of modules, each with who has it."""
    for owner in model.modules():
        for child in owner.children():
            if isinstance(child, nn.ModuleList):
                yield owner, list(child.named_children())


def _by_length(module: nn.Module) -> bool:
    kinds: Any = getattr(module, "rope_type", None)
    names: Iterable[Any] = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any(isinstance(name, str) and any(one in name for one in _BY_LENGTH) for name in names)
