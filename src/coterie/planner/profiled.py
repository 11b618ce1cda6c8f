"""The forecast for domains that a profile knows: what share of their use the hottest experts have that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError
from coterie.planner.hit_rates import NO_MISSES, HitRate, Law
from coterie.planner.ranges import Range
from coterie.profiles import Usage
from coterie.profiles.importance import FEW_OBSERVATIONS

_LOW, _HIGH = 1.6, 1.25
"""A text asks again for what it has just used, so fewer experts are missed than a profile knows, by up to the one
factor; or it is not quite like what was recorded, and more are, by up to the other."""
_LESS, _MORE = 0.06, 0.04
"""So much less or more besides, as for the law."""
MOST = 0.95
"""Of what a domain asks for: the share of which a plan says how much memory holds it."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One domain of a profile.

    Attributes:
        name: Its name.
        tokens: Tokens that were recorded of it, in the layer that has most.
        covered: float64 [experts + 1]: of its activations, those of the so many hottest experts, all layers together.
    """

    name: str
    tokens: int
    covered: Floats

    @classmethod
    def of_rates(cls, name: str, tokens: int, rates: Floats) -> Domain:
        """From the use of each expert, float64 [experts], in any unit."""
        hottest = np.sort(rates)[::-1]
        return cls(
            name=name, tokens=tokens, covered=np.concatenate([[0.0], np.cumsum(hottest) / max(hottest.sum(), 1e-300)])
        )

    def coverage(self, share: float) -> float:
        """Share of the activations whose experts are among the hottest that fit, if a share of all experts does."""
        experts = len(self.covered) - 1
        return float(np.interp(share * experts, np.arange(experts + 1), self.covered))

    def share_for(self, coverage: float) -> float:
        """The least share of the experts that has so much of the activations."""
        experts = len(self.covered) - 1
        return int(np.searchsorted(self.covered, coverage)) / experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """The forecast from a profile, for the domain of which most is missed.

    A cache that follows what a text uses comes to hold the experts that its domain uses most. So the likeliest hit rate
    is the share of the activations that these have, as many of them as fit.

    Attributes:
        domains: At least one.
        law: What another number of experts per token changes.
        top_k: Experts per token and layer, as they were recorded.
    """

    domains: tuple[Domain, ...]
    law: Law
    top_k: float

    def at(self, share: float, *, top_k: float) -> HitRate:
        """See :class:`coterie.planner.HitRates`."""
        return min((self.of(domain, share, top_k=top_k) for domain in self.domains), key=lambda one: one.rate.expected)

    def of(self, domain: Domain, share: float, *, top_k: float) -> HitRate:
        """The same of one of the domains."""
        basis = f"{domain.tokens} tokens of {domain.name} in the profile"
        if share >= 1:
            return HitRate.of_miss(NO_MISSES, grade="profile", basis=basis)
        recorded = self.law.miss(share, self.top_k)
        miss = (1 - domain.coverage(share)) * (self.law.miss(share, top_k) / recorded if recorded else 1.0)
        high = 1.0 if share * self.law.experts < top_k else min(1.0, miss * _HIGH + _MORE)
        around = Range(low=max(0.0, miss / _LOW - _LESS), expected=min(1.0, miss), high=high)
        return HitRate.of_miss(around, grade="profile", basis=basis)


def profiled(profile: str | Path, identity: str | None, names: Sequence[str], *, component: str, law: Law) -> Profiled:
    """The forecast from a profile.

    Args:
        profile: A file, or a PostgreSQL URL.
        identity: Fingerprint of the model; None if its routers are not on this machine.
        names: Domains; each that was recorded if there is none.
        component: Whose experts count.
        law: See :class:`Profiled`.

    Raises:
        ProfileError: If the profile cannot be used, or is about another model.
        UsageError: If the model cannot be recognised, or the profile does not know a domain, the component, or enough
            of them.
    """
    if identity is None:
        raise UsageError(
            "Whether a profile is about this model is seen by its routers, which are not on this machine.",
            advice="Plan without the profile, or download the model first.",
        )
    usage = Usage.open(profile, identity)
    banks = [key for key in usage.banks if key.component == component]
    if not banks:
        raise UsageError(
            f"Nothing of the {component} was recorded in {profile}.",
            advice="Record a profile of the whole model: coterie profile record.",
            got=component,
        )
    experts = sum(usage.banks[key].shape.experts for key in banks)
    top_k = sum(usage.banks[key].shape.top_k for key in banks) / len(banks)
    domains = []
    for name in dict.fromkeys(names or usage.domains):
        rows = usage.where(name)
        activations = sum(int(usage.banks[key].activations[rows].sum()) for key in banks)
        tokens = max(int(usage.banks[key].tokens[rows].sum()) for key in banks)
        if activations < FEW_OBSERVATIONS * experts:
            if not names:
                continue  # of a domain that nobody named, too little is no fault
            needed = -(-tokens * FEW_OBSERVATIONS * experts // max(1, activations))
            raise UsageError(
                f"{tokens} tokens of {name} are in the profile, too few to say what {name} uses: about {needed} are "
                "needed.",
                advice="Record more of it (coterie profile record), or plan without --for.",
                got=name,
            )
        use = usage.expected(domain=name).rates
        rates = np.concatenate([use[key] for key in banks])
        domains.append(Domain.of_rates(name, tokens, rates))
    if not domains:
        raise UsageError(
            f"Too little was recorded in {profile} to say what any domain uses.",
            advice="Record more (coterie profile record), or plan without the profile.",
        )
    return Profiled(domains=tuple(domains), law=law, top_k=top_k)
