"""What prompts begin with, kept so that the next prompt that begins so need not compute it.

A prompt is computed in pieces that end at multiples of a number of tokens. What the model keeps of a whole piece
depends on the tokens up to its end alone, so it is the same, to the bit, for every prompt that begins with them. Tokens
that were computed one by one, or in a shorter piece, have other bits, and are never taken for these. Of a prompt that
is asked several times the end is kept, too: who has the same one goes on with the first new token.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from coterie.errors import UsageError
from coterie.generation.kept_pieces import KeptPieces, PrefixCounts
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefix_keepers import PieceKeeper, WholeKeeper
from coterie.generation.prompt_ends import can_be_copied, whole_key
from coterie.hf.cache_states import keeps_every_token, known_layers
from coterie.hf.caches import caches_in
from coterie.hf.generation_steps import Prepared, may_come_in_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.sequence import Keeper

PIECE = 512
"""Tokens of a piece, where nobody says otherwise: who is answered meanwhile waits for no more than that."""


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
        self._pieces = KeptPieces(limit)
        self._model: weakref.ref[PreTrainedModel] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._pieces.nbytes

    @property
    def limit(self) -> int:
        """Bytes that they may take; what is there goes only when it is in the way, or by :meth:`shrink`."""
        return self._pieces.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._pieces.limit = limit

    @property
    def counts(self) -> PrefixCounts:
        """What became of the prompts so far."""
        return self._pieces.counts

    def __len__(self) -> int:
        """Pieces that are kept."""
        return len(self._pieces)

    def shrink(self, to: int = 0) -> int:
        """Lets go until no more than so many bytes are taken; returns how many were freed."""
        return self._pieces.shrink(to)

    def clear(self, salt: str | None = None) -> None:
        """Forgets all that is kept under a salt; everything, without one. On disk, too.

        Raises:
            CoterieError: If a copy cannot be removed.
        """
        self._pieces.clear(salt)
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
            self._pieces.count(prompts=1)
            size = prepared.config.prefill_chunk_size or self.piece
            keeper = PieceKeeper(self._pieces, self.copy, prepared, salt, size=size, ends=ends, make_room=make_room)
            keeper.go_on(0)
            return keeper
        key = whole_key(prepared, self.piece) if ends and can_be_copied(prepared) else None
        if key is None:
            return None
        self._pieces.count(prompts=1)
        return WholeKeeper(self._pieces, prepared, salt, key)

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


def _hides(prepared: Prepared) -> bool:
    """Whether some tokens of the prompt are not looked at: it is not what its tokens say."""
    mask = prepared.kwargs.get("attention_mask")
    return isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all())


def reuses_beginnings(model: PreTrainedModel) -> bool:
    """Whether a model's prompts can begin with what was computed of others, as far as its own settings go."""
    return keeps_every_token(model) and not _limited(model)


def _limited(model: PreTrainedModel) -> bool:
    """Whether some of the experts are left out now: what is computed then is nobody else's."""
    return bool(getattr(getattr(model, "coterie", None), "limits_experts", False))
