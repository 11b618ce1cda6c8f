"""One forward pass of the next tokens of several sequences, each of which goes on with its own cache."""

from __future__ import annotations

from typing import Any

from coterie.generation.sequence import Sequence
from coterie.hf.generation_steps import join_inputs, row_of
from coterie.hf.row_caches import RowCaches
from coterie.integration import RowWay
from coterie.passes.current import Stated


class SharedPass:
    """A decode step of several sequences of one model.

    Their caches become longer when it is over, or not at all.

    Args:
        way: How it is computed.
        sequences: They have begun.
        inputs: What the model is called with.
        rooms: Where their keys and values go.

    Attributes:
        way: That given.
        sequences: Those given.
    """

    def __init__(self, way: RowWay, sequences: tuple[Sequence, ...], inputs: dict[str, Any], rooms: RowCaches) -> None:
        self.way = way
        self.sequences = sequences
        self._inputs = inputs
        self._rooms = rooms

    @classmethod
    def of(cls, way: RowWay, sequences: tuple[Sequence, ...]) -> SharedPass | None:
        """None for sequences that cannot share one: by their caches, or by what their passes are given.

        Args:
            way: One of the model's.
            sequences: They have begun.
        """
        caches, lengths = [one.cache for one in sequences], [one.position for one in sequences]
        if any(cache is None for cache in caches):
            return None
        rooms = way.rooms(caches, lengths, lambda row: sequences[row].cancel())
        if rooms is None:
            return None
        given = [one.next_inputs() for one in sequences]
        inputs = join_inputs([one for one in given if one is not None], rooms)
        return None if inputs is None else cls(way, sequences, inputs | rooms.inputs, rooms)

    def leave(self, sequence: Sequence) -> None:
        """A sequence is wanted no more: it ends at the next layer, and the others go on. By any thread.

        Args:
            sequence: One of them.
        """
        self._rooms.leave(self.sequences.index(sequence))

    def run(self) -> list[Any]:
        """Computes it; returns what the model would return for each of them."""
        rows = tuple(one.row for one in self.sequences)
        with Stated(phase="decode", rows=rows), self._rooms.computing():
            outputs = self.sequences[0].model(**self._inputs, return_dict=True)
        caches = list(self._rooms.caches)
        self._rooms.commit()
        for one in self.sequences:
            one.exact &= self.way.exact
        return [row_of(outputs, row, cache) for row, cache in enumerate(caches)]
