"""Who may leave memory, and in which order: what a policy ranks, and behind all others what is pinned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.cache.claims import Entry
from coterie.cache.predictions import Predictions
from coterie.eviction import EvictionPolicy, PromptUse
from coterie.eviction.selection import take_until
from coterie.spec import ExpertKey


class Candidates:
    """The resident experts, as they leave; guarded by the cache's lock.

    A policy is told neither of what is pinned nor of its uses: else it would name that again and again. What is pinned
    no more is cold until it is used.

    Args:
        policy: Ranks what is not pinned.
        predictions: Says what is pinned.
        loaded: What is resident.

    Attributes:
        policy: That given.
    """

    def __init__(
        self, policy: EvictionPolicy[ExpertKey], predictions: Predictions, loaded: Mapping[ExpertKey, Entry]
    ) -> None:
        self.policy = policy
        self._predictions = predictions
        self._loaded = loaded
        # As it was when it was looked at last.
        self._pinned: frozenset[ExpertKey] = frozenset()
        self._aside: dict[ExpertKey, int] = {}

    def settle(self) -> None:
        """Looks at what is pinned."""
        pinned = self._predictions.pinned
        if pinned is self._pinned:
            return
        for key in [key for key in self._aside if key not in pinned]:
            self._loaded[key].cold = True
            self.policy.insert(key, self._aside.pop(key), cold=True)
        for key in pinned.difference(self._pinned):
            entry = self._loaded.get(key)
            if entry is not None:
                self.policy.remove(key)
                self._set_aside(entry)
        self._pinned = pinned

    def insert(self, entry: Entry) -> None:
        """An expert is resident."""
        if entry.key in self._pinned:
            self._set_aside(entry)
        else:
            self.policy.insert(entry.key, entry.slot.nbytes, cold=entry.cold)

    def hit(self, entry: Entry) -> None:
        """A resident expert was used again."""
        entry.cold = False
        if entry.key not in self._aside:
            self.policy.hit(entry.key)

    def observe(self, use: PromptUse[ExpertKey], entries: list[Entry]) -> None:
        """A prompt's last tokens used these: what is kept of that is as if decoding had asked for it.

        Args:
            use: What was used.
            entries: What is resident, or on its way, of what is kept of that.
        """
        ranked = [entry for entry in entries if entry.loaded and entry.key not in self._aside]
        use.tell(self.policy, [entry.key for entry in ranked if not entry.cold])
        for entry in ranked:
            if entry.cold:
                self.policy.remove(entry.key)
                self.policy.insert(entry.key, entry.slot.nbytes)
        for entry in entries:
            entry.cold = False

    def remove(self, key: ExpertKey) -> None:
        """An expert is no longer resident."""
        if self._aside.pop(key, None) is None:
            self.policy.remove(key)

    def victims(self, needed: int, may_leave: Callable[[ExpertKey], bool], *, pinned: bool) -> list[ExpertKey]:
        """Those that leave so that so many bytes are free, first one first; none if all that may are not enough.

        Args:
            needed: Bytes.
            may_leave: Whether one may.
            pinned: Whether, if nothing else is enough, what is pinned may, too.
        """
        found = self.policy.victims(needed, may_leave)
        if found or not pinned or not self._aside:
            return found
        sizes = {key: entry.slot.nbytes for key, entry in self._loaded.items()}
        others = sum(size for key, size in sizes.items() if key not in self._aside and may_leave(key))
        first = self.policy.victims(others, may_leave) if others else []
        return take_until([*first, *self._aside], sizes, needed, may_leave)

    def _set_aside(self, entry: Entry) -> None:
        entry.cold = False
        self._aside[entry.key] = entry.slot.nbytes
