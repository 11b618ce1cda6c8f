"""One budget for all who are served at once: what each can come to need is promised to it before it begins.

A memory budget has room for the keys and values of one context, and for experts. Requests share the first, and where
they come to hold more, it is taken from the second, block by block, and given back when they end: the fewer experts
are in memory then, the more are read. So a request begins only if what it can come to need fits beside what was
promised to the others, with the fewest experts that a token is computed with at a bearable speed.

What was computed of the beginnings of prompts is kept in what requests leave of all that. Nothing is promised to it: it
goes when a request needs the room.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from contextlib import suppress

from coterie.engine.runtime import Runtime
from coterie.errors import CoterieError, MemoryBudgetError
from coterie.generation.prefixes import Prefixes
from coterie.spec import format_bytes

BLOCK = 256
"""Tokens by which room for keys and values grows; that of :mod:`coterie.integration.growing_cache`."""

_FLOOR = 2
"""So many times the experts of one token stay in memory, if the arena has had so many."""

_PREFIX_SHARE = 16
"""One part in so many of the arena is for beginnings of prompts, if nobody says how much."""
_PREFIX_NBYTES = 256 << 20
"""For these where no budget says what there is."""

_ASIDE_SHARE = 8
_ASIDE_NBYTES = 64 << 20
"""For decoding beside passes: one part in so many of what requests share, but not less than this if that is free."""
_LEAST_ASIDE_NBYTES = 8 << 20


class Governor:
    """Shares a model's memory among requests. Belongs to one thread, but for its figures and :meth:`forget`.

    Where a model was opened without a budget for the process, requests share the tokens that it was opened for, if that
    was said, and nothing is taken from experts.

    Args:
        runtime: Of the model.

    Attributes:
        total: Bytes that keys and values, pictures and sounds may take together; None if nothing bounds them.
        promised: Of these, what running requests can come to need.
        held: Of these, what they have room for now.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        plan = runtime.plan
        # A plan has more for keys and values than they take: copies while they grow, whoever they belong to.
        shape = runtime.source.footprint.shape
        by_phase = plan is not None and plan.by_phase
        self._token = max(1, shape.text_kv_per_token if by_phase else shape.kv_per_token)
        self._blocked = plan is not None
        # What speaks may be in memory just now, and borrow of it.
        self._capacity = runtime.lending.capacity
        self._floor = self._capacity
        self._spare = 0
        self._reserve = None if runtime.max_context is None else self._nbytes(runtime.max_context)
        if plan is not None:
            self._floor = min(self._capacity, max(runtime.cache.minimum, _FLOOR * runtime.working_set))
            # Parts that requests need have theirs first, whenever they come.
            spare = plan.budget - plan.rest - plan.margin - self._capacity - plan.most_lent
            self._spare = max(0, spare)
            self._floor = min(self._capacity, self._floor + max(0, -spare))
        self.total = None if self._reserve is None else self._reserve + self._spare + self._capacity - self._floor
        self._promises: dict[Hashable, int] = {}
        self._holdings: dict[Hashable, int] = {}
        self._lent = 0
        # Guards promises and holdings: requests are forgotten by whoever gives them up.
        self._changing = threading.Lock()
        # What was held when the arena was last seen to.
        self._covered = 0
        self._prefixes: Prefixes | None = None
        self._share = 0
        # Bytes that these may come to take more in the next pass, and that were there when it was last seen to.
        self._ahead = 0
        self._kept = 0

    def share(self, prefixes: Prefixes, nbytes: int | None) -> None:
        """Bounds what the beginnings of prompts take from now on.

        Args:
            prefixes: Those of this model.
            nbytes: Bytes of the arena that they may take, beside what requests leave of the room for a context; None
                for a share of it.
        """
        self._prefixes = prefixes
        if self._blocked:
            self._share = self._capacity // _PREFIX_SHARE if nbytes is None else nbytes
        else:
            self._share = _PREFIX_NBYTES if nbytes is None else nbytes
        self._ahead = self._token * prefixes.piece
        self._cover()

    @property
    def promised(self) -> int:
        """Bytes that running requests can come to need."""
        return sum(tuple(self._promises.values()))

    @property
    def held(self) -> int:
        """Bytes that they have room for now."""
        return sum(tuple(self._holdings.values()))

    @property
    def lent(self) -> int:
        """Bytes that the experts' arena is smaller by."""
        return self._lent

    def promise(self, whose: Hashable, tokens: int) -> bool:
        """Promises a request what it can come to need, if that is there beside what was promised to others.

        Args:
            whose: The request.
            tokens: Tokens whose keys and values it can come to need.

        Raises:
            MemoryBudgetError: If it is not there, and nothing was promised to others: it would never be.
        """
        needed = self._nbytes(tokens)
        if self.total is not None and self.promised + needed > self.total:
            if not self._promises:
                raise self._refusal(needed)
            return False
        self._promises[whose] = needed
        return True

    def narrow(self, whose: Hashable, tokens: int, media_nbytes: int = 0) -> None:
        """It is known by now that a request can come to need less than it was promised: others get the rest.

        Args:
            whose: A request that was made a promise.
            tokens: Tokens whose keys and values it can come to need.
            media_nbytes: Bytes of its pictures and sounds.
        """
        with self._changing:
            if whose in self._promises:
                self._promises[whose] = min(self._promises[whose], self._nbytes(tokens) + media_nbytes)

    def hold(self, whose: Hashable, tokens: int, media_nbytes: int = 0) -> None:
        """Sees to it that there is room for what a request holds after its next pass.

        Args:
            whose: A request that was made a promise.
            tokens: Tokens of its sequences then.
            media_nbytes: Bytes of its pictures and sounds, which no promise is made of.

        Raises:
            MemoryBudgetError: If there is none, which happens for the sake of pictures and sounds.
        """
        needed = self._nbytes(tokens) + media_nbytes
        before = self._holdings.get(whose, 0)
        if before == needed and self._kept == self._prefix_nbytes and self._covered == self.held:
            return
        # A pass over a longer piece, as one with a picture is, leaves as much to be kept.
        self._ahead = max(self._ahead, needed - before)
        if media_nbytes and self.total is not None:
            others = sum(max(one, self._holdings.get(who, 0)) for who, one in self._promises.items() if who != whose)
            if others + max(self._promises.get(whose, 0), needed) > self.total:
                raise self._refusal(needed)
        if not self._note(whose, needed):
            return
        try:
            self._cover()
        except MemoryBudgetError:
            self._note(whose, before)
            raise

    def set_aside(self, whose: Hashable) -> int | None:
        """Sets bytes aside for pictures and sounds to be decoded while passes go on; until it is forgotten.

        They are taken from what requests leave of the room for a context, and not from the arena.

        Args:
            whose: Who decodes.

        Returns:
            How many; 0 if there are too few. None where nothing bounds them.
        """
        if self._reserve is None or self.total is None or not self._blocked:
            return None
        # Beginnings of prompts go if they are in the way, but not what they take in the next pass.
        taken = self.held + (0 if self._prefixes is None else self._ahead)
        free = min(self.total - self.promised, self._reserve + self._spare + self._lent - taken)
        nbytes = min(free, max(_ASIDE_NBYTES, self.total // _ASIDE_SHARE))
        if nbytes < _LEAST_ASIDE_NBYTES:
            return 0
        with self._changing:
            self._promises[whose] = self._holdings[whose] = nbytes
        self._cover()
        return nbytes

    def forget(self, whose: Hashable) -> None:
        """A request holds nothing any more, and comes to need nothing. Harmless if it never did; by any thread.

        The arena gets back what it lent for that when it is settled.
        """
        with self._changing:
            self._promises.pop(whose, None)
            self._holdings.pop(whose, None)

    def release(self, whose: Hashable) -> None:
        """As :meth:`forget`, and gives back to the arena what is not needed any more."""
        self.forget(whose)
        self._covered = -1
        self.settle()

    def settle(self) -> None:
        """Gives back to the arena what was lent for requests that were forgotten."""
        if self._covered != self.held:
            # Where the model has been closed, there is nothing to be given back.
            with suppress(CoterieError):
                self._cover()

    def _note(self, whose: Hashable, nbytes: int) -> bool:
        """Notes what a request holds; False if it was forgotten meanwhile."""
        with self._changing:
            if whose in self._promises:
                self._holdings[whose] = nbytes
            return whose in self._promises

    def shortage(self, tokens: int) -> str:
        """Says what a request of so many tokens asks for, and what there is."""
        return self._shortage(self._nbytes(tokens))[0]

    def _shortage(self, needed: int) -> tuple[str, int, int]:
        total = self.total or 0
        free = max(0, total - self.promised)
        return (
            f"It can come to need {format_bytes(needed)} for keys and values, pictures and sounds; "
            f"{format_bytes(free)} of {format_bytes(total)} are free.",
            free,
            total,
        )

    def _refusal(self, needed: int) -> MemoryBudgetError:
        said, free, total = self._shortage(needed)
        return MemoryBudgetError(
            f"There is no room for the request. {said}",
            advice="Ask for fewer tokens, or open the model with a larger memory budget.",
            asked=needed,
            free=free,
            budget=total,
        )

    def _nbytes(self, tokens: int) -> int:
        # Without a budget nothing is to be made room for: then tokens are counted as they are.
        return self._token * ((tokens // BLOCK + 1) * BLOCK if self._blocked else tokens)

    def _cover(self) -> None:
        """Takes from the arena what is held beyond all else, or gives it back."""
        held = self._covered = self.held
        if self._reserve is None or self.total is None or not self._blocked:
            if self._prefixes is not None:
                self._prefixes.limit = self._share
            return
        kept = self._bound_prefixes(self._reserve, self.total)
        beyond = max(0, held - self._reserve)
        lent = max(0, held + kept - self._reserve - self._spare)
        if lent != self._lent:
            self._runtime.lending.lend(self, min(lent, self._capacity - self._floor))
            self._lent = lent
        # What is kept of prompts makes way for what was promised.
        promised = min(self.promised, self._reserve) - min(held, self._reserve) - self._prefix_nbytes
        # Blocks are begun before they are full, that of the context as well.
        self._runtime.lend_context(beyond // self._token + BLOCK if held else 0, kept_nbytes=max(0, promised))

    @property
    def _prefix_nbytes(self) -> int:
        return 0 if self._prefixes is None else self._prefixes.nbytes

    def _bound_prefixes(self, reserve: int, total: int) -> int:
        """Has the beginnings of prompts take no more than there is; returns what they may take after the next pass."""
        if self._prefixes is None:
            return 0
        held = self.held
        self._prefixes.limit = max(0, min(max(0, reserve - held) + self._share, total - held))
        self._kept = self._prefixes.nbytes
        ahead, self._ahead = self._ahead, self._token * self._prefixes.piece
        return min(self._prefixes.limit, self._kept + ahead)
