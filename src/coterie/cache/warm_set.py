"""The experts that are worth having before anybody asks for them, and those that are to stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from coterie.spec import ExpertKey

WARM_SHARE = 0.875
"""Share of the capacity that is warmed at most: the rest is what a prefill may turn over."""


class WarmSet:
    """What is worth most, and what is to stay for a time, as far as they fit; guarded by the cache's lock.

    Attributes:
        members: The experts: those that are to stay, then the others, most valuable first.
        pinned: Those of them that leave only when nothing else can.
        todo: Those that are still to be read, soonest first.
        put_off: Those that are to stay, and to be read once somebody says so.
    """

    def __init__(self) -> None:
        self.members: dict[ExpertKey, None] = {}
        self.pinned: frozenset[ExpertKey] = frozenset()
        self.todo: deque[ExpertKey] = deque()
        self._worth: tuple[ExpertKey, ...] = ()
        self._most_worth: tuple[ExpertKey, ...] = ()
        self._kept: tuple[ExpertKey, ...] = ()
        self.put_off: tuple[ExpertKey, ...] = ()

    def replace(
        self, keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], *, nbytes: int, pinned_nbytes: int
    ) -> None:
        """Forgets what was worth most, and takes the first keys that fit.

        Args:
            keys: Most valuable first; repeated ones count once.
            size_of: Bytes of the slot of each.
            nbytes: All together at most.
            pinned_nbytes: The pinned ones' at most.
        """
        self._worth = _fitting(keys, size_of, nbytes)
        self._most_worth = _fitting(self._worth, size_of, pinned_nbytes)
        self._settle()
        later = frozenset(self.put_off)
        self.todo = deque(key for key in self.members if key not in later)

    def keep(
        self, keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], *, nbytes: int, read: bool = True
    ) -> None:
        """Forgets what was to stay, and takes the first keys that fit beside what is pinned; see :meth:`replace`.

        Args:
            keys: Those that are to stay.
            size_of: Bytes of the slot of each.
            nbytes: All together at most.
            read: Whether they are read; else that is put off.
        """
        before, pinned_nbytes = self._kept, sum(map(size_of, self._most_worth))
        self._kept = _fitting(keys, size_of, nbytes - pinned_nbytes)
        self._settle()
        # What was worth having was read once; whatever of it has left since was worth less than what came.
        new = frozenset(self._kept).difference(before).union(self.put_off)
        wanted = tuple(key for key in self._kept if key in new)
        self.put_off = () if read else wanted
        self.todo = deque((*(wanted if read else ()), *(key for key in self.todo if key not in new)))

    def clear(self) -> None:
        """Has no members any more."""
        self._worth = self._most_worth = self._kept = self.put_off = ()
        self._settle()
        self.todo.clear()

    def _settle(self) -> None:
        self.members = dict.fromkeys((*self._kept, *self._worth))
        pinned = frozenset((*self._kept, *self._most_worth))
        # The same object as long as it is the same set: others look at that.
        self.pinned = self.pinned if pinned == self.pinned else pinned


def _fitting(keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], nbytes: int) -> tuple[ExpertKey, ...]:
    """The first of some keys, as many as fit together."""
    fitting, taken = [], 0
    for key in dict.fromkeys(keys):
        taken += size_of(key)
        if taken > nbytes:
            break
        fitting.append(key)
    return tuple(fitting)
