"""What prompts begin with, kept so that the next prompt that begins so need not compute it.

A prompt is computed in pieces that end at multiples of a number of tokens. What the model keeps of a whole piece
depends on the tokens up to its end alone, so it is the same, to the bit, for every prompt that begins with them. Tokens
that were computed one by one, or in a shorter piece, have other bits, and are never taken for these. Of a prompt that
is asked several times the end is kept, too: who has the same one goes on with the first new token.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coterie.errors import UsageError
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefix_tree import Node, PrefixTree
from coterie.generation.prompt_ends import PromptEnd, can_be_copied, end_nbytes, prompt_end, whole_key
from coterie.generation.sequence import Supplied
from coterie.hf.cache_states import Stretch, fill, known_layers, stretch, stretch_nbytes
from coterie.hf.caches import caches_in
from coterie.hf.generation_steps import Positions, Prepared, may_come_in_pieces, piece_end, prompt_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.sequence import Keeper

PIECE = 512
"""Tokens of a piece, where nobody says otherwise: who is answered meanwhile waits for no more than that."""


_Node = Node[Stretch | PromptEnd]
_END = b"end "
"""What a prompt ends with is kept under this and its tokens: it is no piece that others go on after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCounts:
    """What became of the prompts so far.

    Attributes:
        prompts: Prompts that could have begun with something that was kept.
        hits: Those that did.
        tokens: Tokens that were not computed again.
        seconds: How long computing them took when it was done.
    """

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Prefixes:
    """Beginnings of prompts to one model. Several threads may use it.

    Args:
        limit: Bytes that they may take.
        piece: Tokens of a piece. Smaller pieces find more, and compute prompts more slowly.
        copy: A copy of them on disk, for this model.

    Attributes:
        piece: That given.
        copy: That given.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(self, limit: int, *, piece: int = PIECE, copy: PrefixCopy | None = None) -> None:
        if limit < 0 or piece < 1:
            raise UsageError(f"Beginnings of {piece} tokens cannot be kept in {limit} bytes.")
        self.piece = piece
        self.copy = copy
        self._tree: PrefixTree[Stretch | PromptEnd] = PrefixTree(limit)
        # Whoever makes room for what is found may make these fewer.
        self._lock = threading.RLock()
        self._model: weakref.ref[PreTrainedModel] | None = None
        self._counts = PrefixCounts()

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._tree.nbytes

    @property
    def limit(self) -> int:
        """Bytes that they may take; what is there goes only when it is in the way, or by :meth:`shrink`."""
        return self._tree.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._tree.limit = max(0, limit)
            self._tree.shrink(limit)

    @property
    def counts(self) -> PrefixCounts:
        """What became of the prompts so far."""
        return self._counts

    def __len__(self) -> int:
        """Pieces that are kept."""
        with self._lock:
            return len(self._tree)

    def shrink(self, to: int = 0) -> int:
        """Lets go until no more than so many bytes are taken; returns how many were freed."""
        with self._lock:
            return self._tree.shrink(to)

    def clear(self, salt: str | None = None) -> None:
        """Forgets all that is kept under a salt; everything, without one. On disk, too.

        Raises:
            CoterieError: If a copy cannot be removed.
        """
        with self._lock:
            self._tree.clear(salt)
        if self.copy is not None:
            self.copy.forget(salt)

    def expect(self, salt: str) -> None:
        """A prompt under a salt is about to begin: what takes a while the first time is done now, in any thread."""
        if self.copy is not None:
            self.copy.begin(salt)

    def close(self) -> None:
        """Ends what copies them."""
        if self.copy is not None:
            self.copy.close()

    def begin(
        self,
        prepared: Prepared,
        salt: str = "",
        *,
        make_room: Callable[[int], None] | None = None,
        ends: bool = False,
    ) -> Keeper | None:
        """Puts what is known of a prompt's beginning into its cache; more of it is kept as it is computed.

        Args:
            prepared: The request; nothing of it was computed yet.
            salt: What is kept under one is never found under another: whose request it is.
            make_room: Told how many tokens the cache is about to hold.
            ends: Whether others have the same prompt: then it is kept to its end, and found to its end.

        Returns:
            What the sequence is to be given as its keeper; None if this request has to be computed as a whole.

        Raises:
            UsageError: If the model is another than before.
        """
        model = prepared.model
        if self._model is None:
            self._model = weakref.ref(model)
        elif self._model() is not model:
            raise UsageError("Beginnings of prompts to one model are of no use to another one.")
        if _limited(model) or _hides(prepared):
            return None
        if may_come_in_pieces(prepared) and known_layers(caches_in(prepared.kwargs.values())[0]):
            self._count(prompts=1)
            keeper = _Keeping(self, prepared, salt, make_room, ends=ends)
            keeper.go_on(0)
            return keeper
        key = whole_key(prepared, self.piece) if ends and can_be_copied(prepared) else None
        if key is None:
            return None
        self._count(prompts=1)
        return _KeepingWhole(self, prepared, salt, key)

    def find(self, after: _Node, prepared: Prepared, begin: int, size: int) -> list[_Node]:
        """The pieces of a prompt that are kept, from a place on; they count as used. For what :meth:`begin` gives."""
        found: list[_Node] = []
        with self._lock:
            node = self._tree.root(after.salt) if after.salt is not None else after
            while (end := piece_end(prepared, begin, size)) < prompt_length(prepared):
                child = node.children.get(_key(prepared, begin, end))
                if child is None or child.kept is None:
                    break
                found.append(child)
                node, begin = child, end
            if found:
                self._tree.used(node)
        return found

    def find_end(self, after: _Node, key: bytes) -> tuple[PromptEnd, float] | None:
        """What is kept of the end of a prompt, and how long it took. Likewise."""
        with self._lock:
            node = self._tree.root(after.salt) if after.salt is not None else after
            child = node.children.get(key)
            if child is None or not isinstance(child.kept, PromptEnd):
                return None
            self._tree.used(child)
            return child.kept, child.seconds

    def root(self, salt: str) -> _Node:
        """The beginning of all prompts under a salt. Likewise."""
        with self._lock:
            return self._tree.root(salt)

    def keep(
        self, after: _Node, key: bytes, nbytes: int, make: Callable[[], Stretch | PromptEnd | None], seconds: float
    ) -> _Node | None:
        """Keeps what was computed; returns its node, None if there is no room. Likewise.

        Args:
            after: What comes before it.
            key: What it is made of.
            nbytes: Bytes that it takes.
            make: Makes it, once there is room.
            seconds: How long it took to compute.
        """
        with self._lock:
            if not self._tree.room(len(key) + nbytes, after) or (made := make()) is None:
                return None
            return self._tree.add(after, key, made, seconds)

    def count_found(self, tokens: int, seconds: float, *, first: bool) -> None:
        """Counts what need not be computed of a prompt. Likewise."""
        self._count(hits=int(first), tokens=tokens, seconds=seconds)

    def _count(self, *, prompts: int = 0, hits: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
        with self._lock:
            before = self._counts
            self._counts = PrefixCounts(
                prompts=before.prompts + prompts,
                hits=before.hits + hits,
                tokens=before.tokens + tokens,
                seconds=before.seconds + seconds,
            )

    def under(self, salt: str) -> SaltedPrefixes:
        """What a request begins with that finds nothing but what was kept under the same salt."""
        return SaltedPrefixes(self, salt)


class SaltedPrefixes:
    """The beginnings of prompts under one salt.

    Args:
        prefixes: All of them.
        salt: Whose they are.
    """

    def __init__(self, prefixes: Prefixes, salt: str) -> None:
        self._prefixes = prefixes
        self._salt = salt

    @property
    def piece(self) -> int:
        """Tokens of a piece."""
        return self._prefixes.piece

    def begin(self, prepared: Prepared) -> Keeper | None:
        """As :meth:`Prefixes.begin`."""
        return self._prefixes.begin(prepared, self._salt)


class _Keeping:
    """Keeps what is computed of one prompt, piece by piece, and finds what others have computed meanwhile."""

    def __init__(
        self,
        prefixes: Prefixes,
        prepared: Prepared,
        salt: str,
        make_room: Callable[[int], None] | None,
        *,
        ends: bool,
    ) -> None:
        self._prefixes = prefixes
        self._prepared = prepared
        self._size = prepared.config.prefill_chunk_size or prefixes.piece
        self._cache = caches_in(prepared.kwargs.values())[0]
        self._node: _Node | None = prefixes.root(salt)
        self._place = None if prefixes.copy is None else prefixes.copy.begin(salt)
        self._make_room = make_room
        self._ends = ends
        self._hit = False

    def supply(self, begin: int) -> Supplied | None:
        end = self.go_on(begin)
        if end == begin:
            end = self._read(begin)
        return self._end(begin) if end == begin else Supplied(end)

    def go_on(self, begin: int) -> int:
        """Puts the pieces that are known into the cache; returns where the prompt goes on."""
        if self._node is None:
            return begin
        found = self._prefixes.find(self._node, self._prepared, begin, self._size)
        kept = [node.kept for node in found if isinstance(node.kept, Stretch)]
        if len(kept) < len(found) or not kept:
            return begin
        self._node = found[-1]
        for node, piece in zip(found, kept, strict=True):
            self._copy(node, node.key, piece.begin, piece.end, node.seconds)
        if self._make_room is not None:
            self._make_room(kept[-1].end)
        fill(self._cache, kept)
        self._found(kept[-1].end - begin, sum(node.seconds for node in found))
        return kept[-1].end

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        node, prepared, cache, prefixes = self._node, self._prepared, self._cache, self._prefixes
        key = _key(prepared, begin, end)
        if node is not None and self._ends and end == prompt_length(prepared):
            room = end_nbytes(prepared, cache, begin)
            prefixes.keep(
                node, _END + key, room, lambda: prompt_end(prepared, cache, begin, outputs, positions), seconds
            )
        if end != prepared.media.after((begin // self._size + 1) * self._size):
            # What is shorter, as the end of a prompt is, another one would compute together with what follows it.
            self._node = self._place = None
            return
        if node is not None:
            room = stretch_nbytes(cache, begin, end)
            self._node = prefixes.keep(node, key, room, lambda: stretch(cache, begin, end), seconds)
        self._copy(self._node, key, begin, end, seconds)

    def ended(self, ids: Tensor, position: int) -> Any:
        self._node = self._cache = self._place = None

    def _copy(self, node: _Node | None, key: bytes, begin: int, end: int, seconds: float) -> None:
        """Has a piece that is in memory written to disk; the prompt goes on after it."""
        copy, before = self._prefixes.copy, self._place
        if copy is None or before is None:
            return
        self._place = copy.after(before, key)
        if node is not None:
            copy.keep(before, self._place, node, begin, end, seconds)

    def _read(self, begin: int) -> int:
        """Puts the next piece into the cache if it is on disk, and keeps it in memory, too; returns where to go on."""
        copy, place, prepared = self._prefixes.copy, self._place, self._prepared
        end = piece_end(prepared, begin, self._size)
        if copy is None or place is None or end == prompt_length(prepared):
            return begin
        key = _key(prepared, begin, end)
        place = copy.after(place, key)
        found = copy.read(place, begin, end)
        if found is None:
            return begin
        piece, seconds = found
        if self._node is not None:
            self._node = self._prefixes.keep(self._node, key, piece.nbytes, lambda: piece, seconds)
        self._copy(self._node, key, begin, end, seconds)
        fill(self._cache, [piece])
        self._found(end - begin, seconds)
        return end

    def _end(self, begin: int) -> Supplied | None:
        """The end of the prompt, if others with the same one have come there."""
        length = prompt_length(self._prepared)
        if self._node is None or not self._ends or piece_end(self._prepared, begin, self._size) < length:
            return None
        found = self._prefixes.find_end(self._node, _END + _key(self._prepared, begin, length))
        if found is None:
            return None
        self._node = None
        self._found(length - begin, found[1])
        return found[0].supply(self._prepared)

    def _found(self, tokens: int, seconds: float) -> None:
        self._prefixes.count_found(tokens, seconds, first=not self._hit)
        self._hit = True


class _KeepingWhole:
    """Keeps the end of a prompt whose pieces cannot be kept, for others that have the same one."""

    def __init__(self, prefixes: Prefixes, prepared: Prepared, salt: str, key: bytes) -> None:
        self._prefixes = prefixes
        self._prepared = prepared
        self._node = prefixes.root(salt)
        self._key = key

    def supply(self, begin: int) -> Supplied | None:
        found = self._prefixes.find_end(self._node, self._key)
        if found is None:
            return None
        supplied = found[0].supply(self._prepared)
        self._prefixes.count_found(supplied.position - begin, found[1], first=True)
        return supplied

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        prepared, caches = self._prepared, caches_in(outputs.values())
        if end != prompt_length(prepared) or len(caches) != 1:
            return
        cache = caches[0]
        self._prefixes.keep(
            self._node,
            self._key,
            end_nbytes(prepared, cache, 0),
            lambda: prompt_end(prepared, cache, 0, outputs, positions),
            seconds,
        )

    def ended(self, ids: Tensor, position: int) -> Any:
        return None


def _key(prepared: Prepared, begin: int, end: int) -> bytes:
    """What a piece is made of: its tokens, and what its placeholders stand for."""
    ids = prepared.ids[0, begin:end].contiguous().numpy().tobytes()
    shown = b"".join(f" {one.begin - begin} ".encode() + one.digest for one in prepared.media.within(begin, end))
    return f"{end - begin} ".encode() + ids + shown


def _hides(prepared: Prepared) -> bool:
    """Whether some tokens of the prompt are not looked at: it is not what its tokens say."""
    mask = prepared.kwargs.get("attention_mask")
    return isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all())


def _limited(model: PreTrainedModel) -> bool:
    """Whether some of the experts are left out now: what is computed then is nobody else's."""
    return bool(getattr(getattr(model, "coterie", None), "limits_experts", False))
