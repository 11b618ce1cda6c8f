"""One budget for all who are served at once: what each can come to need is promised to it before it begins.

A memory budget has room for the keys and values of one context, and for experts. Requests share the first, and where
they come to hold more, it is taken from the second, block by block, and given back when they end: the fewer experts
are in memory then, the more are read. So a request begins only if what it can come to need fits beside what was
promised to the others, with the fewest experts that a token is computed with at a bearable speed.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

from coterie.engine.runtime import Runtime
from coterie.errors import MemoryBudgetError
from coterie.spec import format_bytes

BLOCK = 256
"""Tokens by which room for keys and values grows; that of :mod:`coterie.integration.growing_cache`."""

_FLOOR = 2
"""So many times the experts of one token stay in memory, if the arena has had so many."""

_PATIENCE_S = 10.0
_POLL_S = 0.002


class Governor:
    """Shares a model's memory among requests. Belongs to one thread, but for its figures.

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
        # A plan counts keys and values twice: the other half is for copies while they grow, whoever they belong to.
        self._token = max(1, runtime.source.footprint.shape.kv_bytes(1) // 2)
        self._blocked = plan is not None
        self._capacity = runtime.cache.capacity
        self._floor = self._capacity
        self._spare = 0
        self._reserve = None if runtime.max_context is None else self._nbytes(runtime.max_context)
        if plan is not None:
            self._floor = min(self._capacity, max(runtime.cache.minimum, _FLOOR * runtime.working_set))
            self._spare = max(0, plan.budget - plan.rest - plan.margin - self._capacity)
        self.total = None if self._reserve is None else self._reserve + self._spare + self._capacity - self._floor
        self._promises: dict[Hashable, int] = {}
        self._holdings: dict[Hashable, int] = {}
        self._lent = 0

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
        if self._holdings.get(whose) == needed:
            return
        before = self._holdings.get(whose, 0)
        if media_nbytes and self.total is not None:
            others = sum(max(one, self._holdings.get(who, 0)) for who, one in self._promises.items() if who != whose)
            if others + max(self._promises[whose], needed) > self.total:
                raise self._refusal(needed)
        self._holdings[whose] = needed
        try:
            self._cover()
        except MemoryBudgetError:
            self._holdings[whose] = before
            raise

    def release(self, whose: Hashable) -> None:
        """A request holds nothing any more. Harmless if it never did."""
        self._promises.pop(whose, None)
        if self._holdings.pop(whose, None) is not None:
            self._cover()

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
        if self._reserve is None or not self._blocked:
            return
        beyond = max(0, self.held - self._reserve)
        lent = max(0, beyond - self._spare)
        if lent != self._lent:
            self._resize(self._capacity - lent)
            self._lent = lent
        kept = max(0, min(self.promised, self._reserve) - min(self.held, self._reserve))
        # Blocks are begun before they are full, that of the context as well.
        self._runtime.lend_context(beyond // self._token + BLOCK if self.held else 0, kept_nbytes=kept)

    def _resize(self, capacity: int) -> None:
        cache = self._runtime.cache
        end = time.monotonic() + _PATIENCE_S
        while not cache.resize(max(capacity, self._floor)):
            # What is being read comes to an end.
            if time.monotonic() > end:
                raise MemoryBudgetError(
                    f"The experts in memory were not made fewer within {_PATIENCE_S:g} s: others hold them.",
                    advice="Do not compute with the model in other threads.",
                    budget=capacity,
                )
            time.sleep(_POLL_S)
