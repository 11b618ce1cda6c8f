"""What experts lend of their memory: to requests, to parts that only some of them need, to long sounds.

One place adds up what is lent, and has the cache become smaller or larger by that. Whoever borrows says how much it has
in all, not how much more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

from coterie.cache import ExpertCache
from coterie.errors import MemoryBudgetError
from coterie.spec import format_bytes

_PATIENCE_S = 10.0
_POLL_S = 0.002


class Lending:
    """Shares the memory of a model's experts. Safe to use from several threads.

    Args:
        cache: The experts in memory.
        spare: Bytes that the budget has beyond what experts can take: they are lent before experts lose any.

    Attributes:
        capacity: Bytes that experts have when nothing is lent.
    """

    def __init__(self, cache: ExpertCache, spare: int = 0) -> None:
        self._cache = cache
        self._spare = spare
        self.capacity = cache.capacity
        self._lent: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Bytes that can be lent beyond what is lent now."""
        return self._spare + self.capacity - self._cache.minimum - sum(tuple(self._lent.values()))

    @property
    def spare(self) -> int:
        """Bytes beside experts that can be lent beyond what is lent now."""
        return max(0, self._spare - sum(tuple(self._lent.values())))

    def lend(self, whose: Hashable, nbytes: int) -> None:
        """Says how much somebody borrows from now on, in all. Memory is free when this returns.

        Args:
            whose: Who borrows.
            nbytes: How much; 0 to give everything back.

        Raises:
            MemoryBudgetError: If there is not so much, or experts that are in use are not let go of; then nothing has
                changed.
            UsageError: If the cache is closed.
        """
        with self._lock:
            before = dict(self._lent)
            if nbytes == before.get(whose, 0):
                return
            if nbytes > before.get(whose, 0) and nbytes - before.get(whose, 0) > self.free:
                raise MemoryBudgetError(
                    f"Experts have {format_bytes(max(0, self.free))} to lend, and "
                    f"{format_bytes(nbytes - before.get(whose, 0))} are asked for.",
                    advice="Open the model with a larger memory budget, or a smaller max_context.",
                    asked=nbytes,
                    free=self.free,
                )
            if nbytes:
                self._lent[whose] = nbytes
            else:
                del self._lent[whose]
            try:
                self._settle()
            except BaseException:
                self._lent = before
                raise

    def _settle(self) -> None:
        capacity = self.capacity - max(0, sum(self._lent.values()) - self._spare)
        if capacity == self._cache.capacity:
            return
        if threading.current_thread() is not threading.main_thread():
            self._resize(capacity)
            return
        # An interrupt comes to the main thread, and must not come between two steps of this.
        failed: list[BaseException] = []

        def resize() -> None:
            try:
                self._resize(capacity)
            except BaseException as error:
                failed.append(error)

        helper = threading.Thread(target=resize, name="coterie-lending")
        helper.start()
        helper.join()
        if failed:
            raise failed[0]

    def _resize(self, capacity: int) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not self._cache.resize(capacity):
            # What is being read comes to an end.
            if time.monotonic() > end:
                raise MemoryBudgetError(
                    f"The experts in memory were not made fewer within {_PATIENCE_S:g} s: others hold them.",
                    advice="Do not compute with the model in other threads.",
                    budget=capacity,
                )
            time.sleep(_POLL_S)
