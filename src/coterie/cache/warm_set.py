"""The experts that are worth having before anybody asks for them, and those that are to stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from coterie.spec import ExpertKey

WARM_SHARE = 0.875
"""Share of the capacity that is warmed at most: the rest is what a prefill may turn over."""


class WarmSet:
    """What is worth most, as far as it fits; guarded by the cache's lock.

    Attributes:
        members: The experts, most valuable first.
        pinned: Those of them that leave only when nothing else can.
        todo: Those that are still to be read; the pinned ones come first, as they are the most valuable.
    """

    def __init__(self) -> None:
        self.members: dict[ExpertKey, None] = {}
        self.pinned: frozenset[ExpertKey] = frozenset()
        self.todo: deque[ExpertKey] = deque()

    def replace(
        self, keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], *, nbytes: int, pinned_nbytes: int
    ) -> None:
        """Forgets what it was, and takes the first keys that fit.

        Args:
            keys: Most valuable first; repeated ones count once.
            size_of: Bytes of the slot of each.
            nbytes: All members' together at most.
            pinned_nbytes: The pinned ones' at most.
        """
        self.members, pinned, taken = {}, [], 0
        for key in dict.fromkeys(keys):
            taken += size_of(key)
            if taken > nbytes:
                break
            self.members[key] = None
            if taken <= pinned_nbytes:
                pinned.append(key)
        self.pinned = frozenset(pinned)
        self.todo = deque(self.members)

    def clear(self) -> None:
        """Has no members any more."""
        self.replace((), lambda _: 0, nbytes=0, pinned_nbytes=0)
