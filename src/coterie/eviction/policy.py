"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coterie.errors import UsageError
from coterie.eviction.lfru import LfruPolicy
from coterie.eviction.lfu import LfuPolicy
from coterie.eviction.lru import LruPolicy
from coterie.eviction.markov import MarkovPolicy
from coterie.eviction.protocol import EvictionPolicy
from coterie.eviction.trust import TrustPolicy

_POLICIES: dict[str, Callable[[], EvictionPolicy[Any]]] = {
    "lru": LruPolicy,
    "lfu": LfuPolicy,
    "lfru": LfruPolicy,
    "markov": MarkovPolicy,
}

POLICY_NAMES = tuple(sorted(_POLICIES))
"""The names that :func:`make_policy` knows of policies that need nothing else."""

TRUST = "trust"
"""The name of the policy that needs to know what is expected."""


def check_policy(name: str, *, profile: bool) -> None:
    """Refuses a name that :func:`make_policy` would refuse.

    Args:
        name: The name.
        profile: Whether it will be known what is expected.

    Raises:
        UsageError: If the name is unknown; it says the nearest one. Or if a profile is needed and there is none.
    """
    if name == TRUST and not profile:
        raise UsageError(
            "The eviction policy 'trust' goes by what a profile says, and none was given.",
            advice="Give the model's profile (--profile), or choose markov, which learns by itself.",
            got=name,
        )
    if name != TRUST and name not in _POLICIES:
        raise UsageError.unknown("eviction policy", name, (*POLICY_NAMES, TRUST))


def make_policy(name: str, expected: Mapping[Any, float] | None = None) -> EvictionPolicy[Any]:
    """Makes a fresh, empty policy.

    Args:
        name: ``"markov"``, ``"lru"``, ``"lfu"`` (with dynamic ageing), ``"lfru"`` or ``"trust"``.
        expected: For ``trust``, which needs it: key → uses per visit. The others do not look at it.

    Raises:
        UsageError: If the name is unknown; it says the nearest one. Or if ``trust`` is not told what to expect.
    """
    check_policy(name, profile=expected is not None)
    if name == TRUST:
        return TrustPolicy(expected or {})
    return _POLICIES[name]()
