"""Next tokens of several sequences in one pass: which models compute them, whether each has its own bits, and where to.

Each has the bits that it has alone where every decoder layer is native: its products, norms, rotations and choices have
the same bits whatever the number of rows, and each row attends to a cache of its own. The norm and the head after the
layers have to be so, too. Whatever else is between layers, such as an embedding or a sum, is computed value by value.

Where other bits will do, more models compute rows together: :mod:`coterie.integration.row_mixers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import nn

from coterie.hf.last_logits import output_head
from coterie.hf.rotary_lengths import goes_by_length
from coterie.hf.row_caches import RowCaches
from coterie.integration.growing_cache import GrowingRoom, room_ahead
from coterie.integration.row_mixers import RowMixers
from coterie.integration.row_rooms import RowRooms
from coterie.integration.token_layer import TokenLayer
from coterie.kernels import QuantisedLinear
from coterie.kernels.dense import NormForward
from coterie.native import MOST_ROWS
from coterie.passes.forwards import at, own
from coterie.spec import Batching


class RowWay(Protocol):
    """A way to compute the next tokens of several sequences of a model in one pass.

    Attributes:
        exact: Whether rows have the bits that they have alone.
        most: Rows of a pass at most.
    """

    exact: bool
    most: int

    def rooms(self, caches: Sequence[Any], lengths: Sequence[int], let_go: Callable[[int], None]) -> RowCaches | None:
        """Room for another token of each sequence; None if one has a cache of another kind.

        Args:
            caches: Their caches.
            lengths: Tokens in each.
            let_go: Told of a row that has left, to let go of its cache.
        """


class RowLayers:
    """The decoder layers of a model that computes rows together, each with the bits that it has alone.

    Args:
        layers: In order.

    Attributes:
        exact: Whether rows have the bits that they have alone.
        most: Rows of a pass at most.
    """

    exact = True
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
        if norm is None or not isinstance(own(norm), NormForward) or any(map(goes_by_length, decoder.modules())):
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
            row: list[GrowingRoom | None] = []
            for cache in caches:
                row.append(room_ahead(cache, layer.layer_idx, *layer.kept, taken=row))
            if any(room is None or room.used != length for room, length in zip(row, lengths, strict=True)):
                return None
            rooms.append(row)
        return RowRooms(caches, lengths, rooms, let_go)


def row_ways(model: nn.Module, batching: Batching = "exact") -> tuple[RowWay, ...]:
    """The ways to compute rows of a model together, the best first.

    Args:
        model: A model with its experts connected.
        batching: Whether rows are to have the bits that they have alone.
    """
    exact = RowLayers.of(model)
    fast = None if batching == "exact" else RowMixers.of(model)
    return tuple(way for way in (exact, fast) if way is not None)


def rows_together(model: nn.Module, batching: Batching = "exact") -> int:
    """Sequences whose next tokens go through a model in one pass; 1 for no more.

    Each with the bits that it has alone, more than one do in models with decoder layers as Qwen3-MoE has them, such as
    Qwen3-Omni's thinker, that are opened from a store whose experts and linear layers are in lossy schemes, with the
    native library. In all others, rows of torch's products have other bits in another number. Where they may have, they
    go through models whose layers all keep tokens, and through no other.

    Args:
        model: From :func:`coterie.load`.
        batching: ``exact`` for the bits of each alone, ``fast`` if they may be others.
    """
    return max((way.most for way in row_ways(model, batching)), default=1)


def _lists(model: nn.Module) -> Iterator[tuple[nn.Module, list[tuple[str, nn.Module]]]]:
    """Lists of modules, each with who has it."""
    for owner in model.modules():
        for child in owner.children():
            if isinstance(child, nn.ModuleList):
                yield owner, list(child.named_children())
