"""Policies by name."""

from __future__ import annotations

from typing import Any

from coterie.errors import UsageError
from coterie.eviction.lfru import LfruPolicy
from coterie.eviction.lfu import LfuPolicy
from coterie.eviction.lru import LruPolicy
from coterie.eviction.markov import MarkovPolicy
from coterie.eviction.protocol import EvictionPolicy

_POLICIES: dict[str, type[LruPolicy[Any]] | type[LfuPolicy[Any]] | type[LfruPolicy[Any]] | type[MarkovPolicy[Any]]] = {
    "lru": LruPolicy,
    "lfu": LfuPolicy,
    "lfru": LfruPolicy,
    "markov": MarkovPolicy,
}

POLICY_NAMES = tuple(sorted(_POLICIES))
"""The names that :func:`make_policy` knows."""


def make_policy(name: str) -> EvictionPolicy[Any]:
    """Makes a fresh, empty policy.

    Args:
        name: ``"markov"``, ``"lru"``, ``"lfu"`` (with dynamic ageing) or ``"lfru"``.

    Raises:
        UsageError: If the name is unknown; it says the nearest one.
    """
    if name not in _POLICIES:
        raise UsageError.unknown("eviction policy", name, POLICY_NAMES)
    return _POLICIES[name]()
