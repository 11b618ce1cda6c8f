"""Where the next tokens of several sequences go while one pass computes them: each into its own cache, all or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from coterie.hf.row_caches import RowCaches, RowsAllLeftError
from coterie.integration.growing_cache import GrowingRoom
from coterie.native import KeyValueRoom, Results


class RowRooms(RowCaches):
    """Room for one more token of each of several sequences, in the caches that they have.

    No cache is longer before :meth:`commit`: a pass that fails leaves all as they were.

    A row may :meth:`leave` while the pass goes on, also by another thread. At the next layer its cache is let go of,
    and the row goes on as a copy of another one, which asks for no expert that the other does not ask for.

    Args:
        caches: Plain dynamic caches, one for each row.
        lengths: Tokens in each.
        rooms: Of each layer, those of the rows.
        let_go: Told of a row that has left, to let go of its cache.
    """

    def __init__(
        self,
        caches: Sequence[Any],
        lengths: Sequence[int],
        rooms: list[list[GrowingRoom | None]],
        let_go: Callable[[int], None],
    ) -> None:
        super().__init__(caches, lengths, let_go, depth=len(rooms))
        self._rooms = rooms
        self._places = [[room.next_place for room in row if room is not None] for row in rooms]
        self._left: dict[int, tuple[tuple[torch.Tensor, torch.Tensor], KeyValueRoom]] = {}

    def places(self, layer_idx: int) -> list[KeyValueRoom]:
        """Where keys and values of each row lie in a layer, with a place for its token at the end.

        Raises:
            RowsAllLeftError: If nobody wants any of them.
            RowsApartError: If layers do not come one after the other.
        """
        self._begin_layer(layer_idx)
        places = self._places[layer_idx]
        if self._leaving:
            places = list(places)
            for row in tuple(self._leaving):
                places[row] = self._apart(row, layer_idx)
            if len(self._left) == len(places):
                raise RowsAllLeftError
        return places

    def _apart(self, row: int, layer_idx: int) -> KeyValueRoom:
        """A place that belongs to no cache."""
        if row not in self._left:
            room = self._rooms[layer_idx][row]
            if room is None:
                raise AssertionError("a row leaves once")
            scratch = room.one_token()
            self._left[row] = scratch, KeyValueRoom.of(*scratch)[0]
            for rooms in self._rooms:
                rooms[row] = None
            self.caches[row] = None
            self._let_go(row)
        return self._left[row][1]

    def copy_over_left(self, results: Results) -> None:
        """Has rows that left be as one that stays."""
        if not self._left:
            return
        stays = next(row for row in range(len(self.caches)) if row not in self._left)
        for row in self._left:
            for whole in (results.residual, results.normed, results.ids, results.weights):
                whole[row] = whole[stays]

    def commit(self) -> None:
        """The pass is over: makes the caches longer by the token that it has computed."""
        for layer_idx, rooms in enumerate(self._rooms):
            for cache, room in zip(self.caches, rooms, strict=True):
                if room is not None:
                    layer = cache.layers[layer_idx]
                    layer.keys, layer.values = room.longer()
