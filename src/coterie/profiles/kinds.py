"""Universal and specialised experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from coterie.profiles.inference import Floats
from coterie.profiles.profile import Profile
from coterie.profiles.specialisation import Specialisation, specialisation

KINDS_SCHEMA_VERSION = 1

Kind = Literal["universal", "specialist", "mixed", "unused"]
"""Above chance in every domain; a specialist of some; neither; never selected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertKind:
    """What kind of expert one is.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number there.
        kind: ``universal``, ``specialist``, ``mixed`` or ``unused``.
        domains: Domains that it is a specialist of.
        effective_domains: exp(H) of its shares of the domains scaled to 1: as many domains as it would serve, did it
            serve each alike (Hill's number of order 1; Jost, "Entropy and diversity", Oikos 113, 2006).
        shares: Domain → specialisation N_{e,D} / N_D.
    """

    component: str
    layer: int
    bank: str
    expert_id: int
    kind: Kind
    domains: tuple[str, ...]
    effective_domains: float
    shares: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """All experts, sorted into kinds.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        tokens: Domain → tokens.
        counts: Kind → how many experts.
        experts: All of them, in order of component, layer, bank and number.
    """

    schema_version: int = KINDS_SCHEMA_VERSION
    model: str
    identity: str
    tokens: dict[str, int]
    counts: dict[Kind, int]
    experts: tuple[ExpertKind, ...]


def expert_kinds(
    profile: Profile, *, modality: str | None = None, phase: str | None = None, component: str | None = None
) -> Kinds:
    """Tells universal experts from specialised ones.

    Universal is an expert that is above chance in *every* domain, each by the test of
    :func:`coterie.profiles.specialisation.specialisation` (q ≤ 0.05, replicated in both halves); so it takes at least
    two domains. A specialist is one for at least one domain, and not universal.

    Args:
        profile: Of the model.
        modality: Only tokens of this modality.
        phase: Only tokens of this phase.
        component: Only this part of the model.

    Raises:
        UsageError: For a name that is not known; says which are.
    """
    within = profile.where(modality=modality, phase=phase)
    by_domain: dict[str, dict[object, Specialisation]] = {}
    for domain in profile.domains:
        selected = profile.where(domain=domain, modality=modality, phase=phase)
        results = specialisation(profile, selected, within & ~selected, component)
        if results:
            by_domain[domain] = {result.shape.bank: result for result in results}
    experts: list[ExpertKind] = []
    for table in profile.tables(component):
        results_by_domain = {
            domain: results[table.shape.bank] for domain, results in by_domain.items() if table.shape.bank in results
        }
        if results_by_domain:
            experts += _bank_kinds(results_by_domain)
    counts: dict[Kind, int] = {"universal": 0, "specialist": 0, "mixed": 0, "unused": 0}
    for expert in experts:
        counts[expert.kind] += 1
    tokens = {domain: max(result.tokens for result in found.values()) for domain, found in by_domain.items()}
    return Kinds(model=profile.model, identity=profile.identity, tokens=tokens, counts=counts, experts=tuple(experts))


def _bank_kinds(results: dict[str, Specialisation]) -> list[ExpertKind]:
    shape = next(iter(results.values())).shape
    names = list(results)
    shares = np.stack([results[name].shares for name in names])
    special = np.stack([results[name].specialists for name in names])
    universal = np.logical_and.reduce([results[name].above_chance for name in names]) & (len(names) > 1)
    used = shares.sum(axis=0) > 0
    breadth = effective_number(shares)
    found = []
    for expert in range(shape.experts):
        kind: Kind = "mixed"
        if not used[expert]:
            kind = "unused"
        elif universal[expert]:
            kind = "universal"
        elif special[:, expert].any():
            kind = "specialist"
        found.append(
            ExpertKind(
                **shape.bank._asdict(),
                expert_id=expert,
                kind=kind,
                domains=tuple(name for name, own in zip(names, special[:, expert], strict=True) if own),
                effective_domains=float(breadth[expert]),
                shares=dict(zip(names, shares[:, expert].tolist(), strict=True)),
            )
        )
    return found


def effective_number(shares: Floats) -> Floats:
    """The exponential of the entropy of each column [D, E], scaled to 1; 0 for a column of zeros."""
    sums = shares.sum(axis=0)
    scaled = np.divide(shares, sums, out=np.zeros_like(shares), where=sums > 0)
    logs = np.log(scaled, out=np.zeros_like(scaled), where=scaled > 0)
    numbers: Floats = np.where(sums > 0, np.exp(-(scaled * logs).sum(axis=0)), 0.0)
    return numbers
