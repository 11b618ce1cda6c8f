"""Experts that are pinned stand aside: a policy ranks the others, and these leave behind all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.cache.claims import Entry
from coterie.cache.predictions import Predictions
from coterie.eviction import EvictionPolicy, PromptUse
from coterie.eviction.selection import take_until
from coterie.spec import ExpertKey


class Pinned:
    """What a policy is not told of, nor of its uses: else it would name that again and again.

    Guarded by the cache's lock. What is pinned no more is cold until it is used.

    Args:
        policy: Ranks what is not pinned.
        predictions: Says what is pinned.
        loaded: What is resident.

    Attributes:
        keys: What is pinned, resident or not, as it was when it was looked at last.
        aside: What of it is resident, with its bytes.
    """

    def __init__(
        self, policy: EvictionPolicy[ExpertKey], predictions: Predictions, loaded: Mapping[ExpertKey, Entry]
    ) -> None:
        self._policy = policy
        self._predictions = predictions
        self._loaded = loaded
        self.keys: frozenset[ExpertKey] = frozenset()
        self.aside: dict[ExpertKey, int] = {}

    def look(self) -> None:
        """Other experts are pinned than before."""
        pinned = self._predictions.pinned
        for key in [key for key in self.aside if key not in pinned]:
            self._loaded[key].cold = True
            self._policy.insert(key, self.aside.pop(key), cold=True)
        for key in pinned.difference(self.keys):
            entry = self._loaded.get(key)
            if entry is not None:
                self._policy.remove(key)
                self.set_aside(entry)
        self.keys = pinned

    def set_aside(self, entry: Entry) -> None:
        """An expert that is pinned is resident."""
        entry.cold = False
        self.aside[entry.key] = entry.slot.nbytes

    def observe(self, use: PromptUse[ExpertKey]) -> None:
        """A prompt's last tokens used these: what is kept of that is as if decoding had asked for it."""
        sizes = {
            key: self._loaded[key].slot.nbytes for key in use.kept if key in self._loaded and key not in self.aside
        }
        use.tell(self._policy, sizes, lambda key: self._loaded[key].cold)

    def among(self, needed: int, may_leave: Callable[[ExpertKey], bool]) -> list[ExpertKey]:
        """Victims where what is not pinned is not enough: all of that, then these; none if that is too little."""
        sizes = {key: entry.slot.nbytes for key, entry in self._loaded.items()}
        others = sum(size for key, size in sizes.items() if key not in self.aside and may_leave(key))
        first = self._policy.victims(others, may_leave) if others else []
        return take_until([*first, *self.aside], sizes, needed, may_leave)
