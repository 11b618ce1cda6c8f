"""Who keeps what is computed of one prompt, and finds what was computed of the same tokens for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from coterie.generation.kept_pieces import KeptNode, KeptPieces, piece_key
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prompt_ends import end_nbytes, prompt_end
from coterie.generation.sequence import Supplied
from coterie.hf.cache_states import Stretch, fill, stretch, stretch_nbytes
from coterie.hf.caches import caches_in
from coterie.hf.generation_steps import Positions, Prepared, piece_end, prompt_length

_END = b"end "
"""What a prompt ends with is kept under this and its tokens: it is no piece that others go on after."""


class PieceKeeper:
    """Keeps what is computed of one prompt, piece by piece, and finds what others have computed meanwhile.

    Args:
        pieces: Those in memory.
        copy: Those on disk, if there are any.
        prepared: The request.
        salt: Whose it is.
        size: Tokens of a piece.
        ends: Whether the prompt is kept, and found, to its end.
        make_room: Told how many tokens the cache is about to hold.

    Attributes:
        kept: Tokens of the prompt that were computed and are kept, in whole pieces.
    """

    def __init__(
        self,
        pieces: KeptPieces,
        copy: PrefixCopy | None,
        prepared: Prepared,
        salt: str,
        *,
        size: int,
        ends: bool,
        make_room: Callable[[int], None] | None,
    ) -> None:
        self._pieces = pieces
        self._copy = copy
        self._prepared = prepared
        self._size = size
        self._cache = caches_in(prepared.kwargs.values())[0]
        self._node: KeptNode | None = pieces.root(salt)
        self._place = None if copy is None else copy.begin(salt)
        self._make_room = make_room
        self._ends = ends
        self._hit = False
        self.kept = 0

    def supply(self, begin: int) -> Supplied | None:
        """See :class:`~coterie.generation.sequence.Keeper`; likewise the following."""
        end = self.go_on(begin)
        if end == begin:
            end = self._read(begin)
        return self._end(begin) if end == begin else Supplied(end)

    def go_on(self, begin: int) -> int:
        """Puts the pieces that are known into the cache; returns where the prompt goes on."""
        if self._node is None:
            return begin
        found = self._pieces.find(self._node, self._prepared, begin, self._size)
        kept = [node.kept for node in found if isinstance(node.kept, Stretch)]
        if len(kept) < len(found) or not kept:
            return begin
        self._node = found[-1]
        for node, piece in zip(found, kept, strict=True):
            self._write(node, node.key, piece.begin, piece.end, node.seconds)
        if self._make_room is not None:
            self._make_room(kept[-1].end)
        fill(self._cache, kept)
        self._found(kept[-1].end - begin, sum(node.seconds for node in found))
        return kept[-1].end

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        """A pass is over."""
        node, prepared, cache, pieces = self._node, self._prepared, self._cache, self._pieces
        key = piece_key(prepared, begin, end)
        if node is not None and self._ends and end == prompt_length(prepared):
            room = end_nbytes(prepared, cache, begin)
            pieces.keep(node, _END + key, room, lambda: prompt_end(prepared, cache, begin, outputs, positions), seconds)
        if end != prepared.media.after((begin // self._size + 1) * self._size):
            # What is shorter, as the end of a prompt is, another one would compute together with what follows it.
            self._node = self._place = None
            return
        if node is not None:
            room = stretch_nbytes(cache, begin, end)
            self._node = pieces.keep(node, key, room, lambda: stretch(cache, begin, end), seconds)
            self.kept += 0 if self._node is None else end - begin
        self._write(self._node, key, begin, end, seconds)

    def ended(self, ids: Tensor, position: int) -> Any:
        """The sequence has ended."""
        self._node = self._cache = self._place = None

    def _write(self, node: KeptNode | None, key: bytes, begin: int, end: int, seconds: float) -> None:
        """Has a piece that is in memory written to disk; the prompt goes on after it."""
        copy, before = self._copy, self._place
        if copy is None or before is None:
            return
        self._place = copy.after(before, key)
        if node is not None:
            copy.keep(before, self._place, node, begin, end, seconds)

    def _read(self, begin: int) -> int:
        """Puts the next piece into the cache if it is on disk, and keeps it in memory, too; returns where to go on."""
        copy, place, prepared = self._copy, self._place, self._prepared
        end = piece_end(prepared, begin, self._size)
        if copy is None or place is None or end == prompt_length(prepared):
            return begin
        key = piece_key(prepared, begin, end)
        place = copy.after(place, key)
        found = copy.read(place, begin, end)
        if found is None:
            return begin
        piece, seconds = found
        if self._node is not None:
            self._node = self._pieces.keep(self._node, key, piece.nbytes, lambda: piece, seconds)
        self._write(self._node, key, begin, end, seconds)
        fill(self._cache, [piece])
        self._found(end - begin, seconds)
        return end

    def _end(self, begin: int) -> Supplied | None:
        """The end of the prompt, if others with the same one have come there."""
        length = prompt_length(self._prepared)
        if self._node is None or not self._ends or piece_end(self._prepared, begin, self._size) < length:
            return None
        found = self._pieces.find_end(self._node, _END + piece_key(self._prepared, begin, length))
        if found is None:
            return None
        self._node = None
        self._found(length - begin, found[1])
        return found[0].supply(self._prepared)

    def _found(self, tokens: int, seconds: float) -> None:
        self._pieces.count(hits=int(not self._hit), tokens=tokens, seconds=seconds)
        self._hit = True


class WholeKeeper:
    """Keeps the end of a prompt whose pieces cannot be kept, for others that have the same one.

    Args:
        pieces: What is in memory.
        prepared: The request.
        salt: Whose it is.
        key: What the prompt is.

    Attributes:
        kept: Tokens of whole pieces that are kept: none.
    """

    kept = 0

    def __init__(self, pieces: KeptPieces, prepared: Prepared, salt: str, key: bytes) -> None:
        self._pieces = pieces
        self._prepared = prepared
        self._node = pieces.root(salt)
        self._key = key

    def supply(self, begin: int) -> Supplied | None:
        """See :class:`~coterie.generation.sequence.Keeper`; likewise the following."""
        found = self._pieces.find_end(self._node, self._key)
        if found is None:
            return None
        supplied = found[0].supply(self._prepared)
        self._pieces.count(hits=1, tokens=supplied.position - begin, seconds=found[1])
        return supplied

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        """A pass is over."""
        prepared, caches = self._prepared, caches_in(outputs.values())
        if end != prompt_length(prepared) or len(caches) != 1:
            return
        cache = caches[0]
        self._pieces.keep(
            self._node,
            self._key,
            end_nbytes(prepared, cache, 0),
            lambda: prompt_end(prepared, cache, 0, outputs, positions),
            seconds,
        )

    def ended(self, ids: Tensor, position: int) -> Any:
        """The sequence has ended."""
        return None
