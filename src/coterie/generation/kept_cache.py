"""What a conversation goes on with: the cache of its last answer.

A turn computes its own tokens only, after those of the turns before. What is kept can be cut off at the end of every
pass that computed it. So a turn that is taken back, or asked once more, is computed exactly as if it came for the first
time. It is not what the whole conversation would come to in one pass: products over another number of tokens round
otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.hf.cache_states import cut, known_layers, whole_layers
from coterie.hf.caches import cached_length, caches_in
from coterie.hf.generation_steps import Positions, Prepared, may_come_in_pieces, prompt_length
from coterie.passes.idle_caches import IDLE

if TYPE_CHECKING:
    from coterie.generation.sequence import Keeper


class KeptCache:
    """The cache of one conversation with one model; one request at a time begins with it.

    It takes the room of its tokens. Whoever else needs the room gets it, and the next turn is computed as a whole.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids = torch.zeros(0, dtype=torch.int64)
        # Where pictures and sounds begin, and which they are.
        self._shown: list[tuple[int, bytes]] = []
        # Where passes over several tokens began and ended: between, there is nothing to go on from.
        self._passes: list[tuple[int, int]] = []
        # Of passes over pictures and sounds, what a talker reads of them.
        self._heard: list[tuple[int, Tensor]] = []

    @property
    def tokens(self) -> int:
        """Tokens that it holds; fewer, if others need the room."""
        return 0 if self._cache is None else len(self._ids)

    @property
    def piece(self) -> None:
        """A turn is one pass."""
        return None

    def drop(self) -> None:
        """Frees it."""
        if self._cache is not None:
            IDLE.let_one_go(lambda cache: cache is self._cache)
        self._cache, self._passes, self._heard = None, [], []

    @property
    def ids(self) -> Tensor:
        """The tokens that it holds, int64 [T]."""
        return self._ids[: self.tokens]

    @property
    def heard(self) -> list[Tensor]:
        """What was noted by :meth:`hear` of tokens that it holds, pass by pass."""
        return [rows for _, rows in self._heard]

    def hear(self, end: int, rows: Tensor) -> None:
        """Notes what a talker reads of the pictures and sounds in a pass that ended at a token: [M, H]."""
        self._heard.append((end, rows))

    def begin(self, prepared: Prepared) -> Keeper | None:
        """Has a request begin with what is kept, as far as it begins in the same way.

        Args:
            prepared: The request.

        Returns:
            What the sequence is to be given as its keeper; None if this request has to be computed as a whole.
        """
        caches = caches_in(prepared.kwargs.values())
        limited = bool(getattr(getattr(prepared.model, "coterie", None), "limits_experts", False))
        if not may_come_in_pieces(prepared) or not known_layers(caches[0]) or limited:
            self.drop()
            return None
        cache = self._go_on(prepared)
        if cache is None:
            self.drop()
            cache = caches[0]
        else:
            prepared.go_on_with(cache)
        return _Going(self, cache, _shown(prepared))

    def resume(self, ids: Tensor) -> tuple[Any, Keeper] | None:
        """The kept cache as it was left, and who keeps it; None if it is not there, or has gone on since.

        Args:
            ids: The tokens that it has to hold, [T].
        """
        if self._cache is None or not torch.equal(self._ids, ids) or not IDLE.take(self._cache):
            return None
        cache, self._cache = self._cache, None
        return cache, _Going(self, cache, self._shown)

    def _go_on(self, prepared: Prepared) -> Any:
        """The kept cache, cut to the tokens that the request begins with; None if there are none."""
        if self._cache is None or not IDLE.take(self._cache):
            return None
        cache, self._cache = self._cache, None
        same = self._common(prepared)
        same = next((begin for begin, end in self._passes if begin < same < end), same)
        if not same or (same < len(self._ids) and not whole_layers(cache)):
            return None
        cut(cache, same)
        self._passes = [one for one in self._passes if one[1] <= same]
        self._heard = [one for one in self._heard if one[0] <= same]
        return cache

    def _common(self, prepared: Prepared) -> int:
        """Tokens that a prompt begins with as what is kept does; its last one has to be computed in any case."""
        ids = prepared.ids[0]
        length = min(prompt_length(prepared) - 1, len(self._ids))
        others = (ids[:length] != self._ids[:length]).nonzero()
        same = int(others[0]) if len(others) else length
        return min((same, *(begin for begin, _ in {*self._shown} ^ {*_shown(prepared)})))

    def note(self, begin: int, end: int) -> None:
        """A pass computed these tokens. For what :meth:`begin` gives."""
        self._passes.append((begin, end))

    def keep(self, cache: Any, ids: Tensor, position: int, shown: list[tuple[int, bytes]]) -> Any:
        """Keeps a cache that holds so many tokens; returns it, None if it cannot be kept. Likewise."""
        if whole_layers(cache):
            cut(cache, position)
        if not position or not known_layers(cache) or cached_length(cache) != position:
            self.drop()
            return None
        self._cache, self._ids = cache, ids[0, :position].clone()
        self._shown = [one for one in shown if one[0] < position]
        IDLE.keep(cache)
        return cache


class _Going:
    """Keeps the cache of one request, for the conversation that it is of."""

    kept = 0

    def __init__(self, kept: KeptCache, cache: Any, shown: list[tuple[int, bytes]]) -> None:
        self._kept = kept
        self._cache = cache
        self._shown = shown

    def supply(self, begin: int) -> None:
        """All that is kept is there when the request begins."""

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        self._kept.note(begin, end)

    def ended(self, ids: Tensor, position: int) -> Any:
        return self._kept.keep(self._cache, ids, position, self._shown)


def _shown(prepared: Prepared) -> list[tuple[int, bytes]]:
    return [(one.begin, one.digest) for one in prepared.media.each]
