"""What prompts begin with, kept so that the next prompt that begins so need not compute it.

A prompt is computed in pieces that end at multiples of a number of tokens. What the model keeps of a whole piece
depends on the tokens up to its end alone, so it is the same, to the bit, for every prompt that begins with them. Tokens
that were computed one by one, or in a shorter piece, have other bits, and are never taken for these.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coterie.errors import UsageError
from coterie.generation.prefix_tree import Node, PrefixTree
from coterie.hf.cache_states import Stretch, fill, keeps_every_token, known_layers, stretch, stretch_nbytes
from coterie.hf.caches import caches_in
from coterie.hf.generation_steps import Prepared, may_come_in_pieces, piece_end, prompt_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.sequence import Keeper

PIECE = 512
"""Tokens of a piece, where nobody says otherwise: who is answered meanwhile waits for no more than that."""


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

    Attributes:
        piece: That given.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(self, limit: int, *, piece: int = PIECE) -> None:
        if limit < 0 or piece < 1:
            raise UsageError(f"Beginnings of {piece} tokens cannot be kept in {limit} bytes.")
        self.piece = piece
        self._tree: PrefixTree[Stretch] = PrefixTree(limit)
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
        """Forgets all that is kept under a salt; everything, without one."""
        with self._lock:
            self._tree.clear(salt)

    def begin(
        self, prepared: Prepared, salt: str = "", *, make_room: Callable[[int], None] | None = None
    ) -> Keeper | None:
        """Puts what is known of a prompt's beginning into its cache; more of it is kept as it is computed.

        Args:
            prepared: The request; nothing of it was computed yet.
            salt: What is kept under one is never found under another: whose request it is.
            make_room: Told how many tokens the cache is about to hold.

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
        caches = caches_in(prepared.kwargs.values())
        if not may_come_in_pieces(prepared) or not known_layers(caches[0]) or _limited(model):
            return None
        with self._lock:
            return self._find(prepared, caches[0], salt, make_room)

    def _find(self, prepared: Prepared, cache: Any, salt: str, make_room: Callable[[int], None] | None) -> Keeper:
        size = prepared.config.prefill_chunk_size or self.piece
        node = self._tree.root(salt)
        position, seconds, found = 0, 0.0, []
        while (end := piece_end(prepared, position, size)) < prompt_length(prepared):
            child = node.children.get(_key(prepared, position, end))
            if child is None or child.kept is None:
                break
            found.append(child.kept)
            node, position, seconds = child, end, seconds + child.seconds
        before = self._counts
        self._counts = PrefixCounts(
            prompts=before.prompts + 1,
            hits=before.hits + bool(found),
            tokens=before.tokens + position,
            seconds=before.seconds + seconds,
        )
        if found:
            self._tree.used(node)
            if make_room is not None:
                make_room(position)
            fill(cache, found)
        return _Keeping(self, prepared, cache, node, size)

    def under(self, salt: str) -> SaltedPrefixes:
        """What a request begins with that finds nothing but what was kept under the same salt."""
        return SaltedPrefixes(self, salt)

    def keep(self, after: Node[Stretch], key: bytes, cache: Any, place: tuple[int, int], seconds: float) -> Any:
        """Keeps a piece that was computed; returns its node, None if there is no room. For what :meth:`begin` gives."""
        with self._lock:
            if not self._tree.room(len(key) + stretch_nbytes(cache, *place), after):
                return None
            return self._tree.add(after, key, stretch(cache, *place), seconds)


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
    """Keeps what is computed of one prompt."""

    def __init__(
        self, prefixes: Prefixes, prepared: Prepared, cache: Any, node: Node[Stretch] | None, size: int
    ) -> None:
        self._prefixes = prefixes
        self._prepared = prepared
        self._cache = cache
        self._node = node
        self._size = size
        self.kept = 0

    def passed(self, begin: int, end: int, seconds: float) -> None:
        # What is shorter, as the end of a prompt is, another prompt would compute together with what follows it.
        if end != self._prepared.media.after((begin // self._size + 1) * self._size):
            self._node = None
        if self._node is not None:
            key = _key(self._prepared, begin, end)
            self._node = self._prefixes.keep(self._node, key, self._cache, (begin, end), seconds)
            self.kept += 0 if self._node is None else end - begin

    def ended(self, ids: Tensor, position: int) -> None:
        self._node = self._cache = None


def _key(prepared: Prepared, begin: int, end: int) -> bytes:
    """What a piece is made of: its tokens, and what its placeholders stand for."""
    ids = prepared.ids[0, begin:end].contiguous().numpy().tobytes()
    shown = b"".join(f" {one.begin - begin} ".encode() + one.digest for one in prepared.media.within(begin, end))
    return f"{end - begin} ".encode() + ids + shown


def reuses_beginnings(model: PreTrainedModel) -> bool:
    """Whether a model's prompts can begin with what was computed of others, as far as its own settings go."""
    return keeps_every_token(model) and not _limited(model)


def _limited(model: PreTrainedModel) -> bool:
    """Whether some of the experts are left out now: what is computed then is nobody else's."""
    return bool(getattr(getattr(model, "coterie", None), "limits_experts", False))
