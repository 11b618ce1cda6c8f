"""Models whose sequences are not to share passes after all, as that has failed."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

_MOST = 2
"""Passes that fail though none of their sequences fails alone, before no more is tried."""

_log = logging.getLogger("coterie.generation")


class Doubts:
    """Notes of failed passes that concern none of their sequences: what failed then is sharing them.

    What a class does in its forward is its own affair. One that cannot be called so after all shows it by an error. Its
    sequences take turns from then on, instead of failing and being computed again in every step.
    """

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def allow(self, model: Any) -> bool:
        """Whether its sequences may share another pass."""
        return self._counts.get(model, 0) < _MOST

    def note(self, model: Any, error: Exception) -> None:
        """A pass has failed, and then each of its sequences went on alone."""
        self._counts[model] = self._counts.get(model, 0) + 1
        if self._counts[model] == _MOST:
            self._say(model, error)

    def exclude(self, model: Any, error: Exception) -> None:
        """A pass has found that its sequences cannot share it."""
        self._counts[model] = _MOST
        self._say(model, error)

    @staticmethod
    def _say(model: Any, error: Exception) -> None:
        _log.warning("Answers of %s take turns, a token each: %s", type(model).__name__, error)
