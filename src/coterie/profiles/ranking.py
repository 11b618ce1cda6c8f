"""Which experts handle a domain or modality: the ranked list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coterie.errors import UsageError
from coterie.profiles.profile import Profile
from coterie.profiles.specialisation import Specialisation, figure, specialisation

RANKING_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedExpert:
    """One expert of a ranking; :class:`coterie.profiles.specialisation.Specialisation` has the formulas.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number there.
        tokens: Tokens behind the figures, N_D.
        activations: Of these that selected the expert, N_{e,D}.
        specialisation: N_{e,D} / N_D.
        low: Lower end of its 95 % interval; None with too few segments. Blocks of segments are the sampling unit.
        high: Upper end; None likewise.
        chance: What it would be if the router did not choose, k / E.
        lift: specialisation / chance.
        others: The same share among all other tokens; None if there are none.
        gate_share: Share of the layer's gate mass that the expert got.
        q_value: Of `not above chance`, over all experts of the ranking (Benjamini–Hochberg); None with too few
            segments.
        q_others: Of `not above others`; None likewise, and without other tokens.
        replicated: Whether both show in each half of the data.
        specialist: Whether all of it holds: q-values at most 0.05, and replicated.
    """

    component: str
    layer: int
    bank: str
    expert_id: int
    tokens: int
    activations: int
    specialisation: float
    low: float | None
    high: float | None
    chance: float
    lift: float
    others: float | None
    gate_share: float
    q_value: float | None
    q_others: float | None
    replicated: bool
    specialist: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Experts by how much they handle a selection of tokens.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        domain: The domain asked about; None for all.
        modality: The modality; None for all.
        phase: The phase; None for both.
        tokens: Tokens of the selection.
        blocks: Blocks of segments that the least observed bank has.
        specialists: How many experts are specialists, shown or not.
        total: Experts that were examined.
        experts: Specialists first, then by specialisation.
    """

    schema_version: int = RANKING_SCHEMA_VERSION
    model: str
    identity: str
    domain: str | None
    modality: str | None
    phase: str | None
    tokens: int
    blocks: int
    specialists: int
    total: int
    experts: tuple[RankedExpert, ...]


def rank_experts(
    profile: Profile,
    *,
    domain: str | None = None,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
    limit: int | None = None,
    specialists_only: bool = False,
) -> Ranking:
    """Ranks experts by how much they handle a domain, a modality, or both.

    What they are compared with is everything else that was recorded, of the same phase if one is given.

    Args:
        profile: Of the model.
        domain: Such as ``code``.
        modality: Such as ``audio``.
        phase: ``prompt`` or ``generated``.
        component: Only this part of the model.
        limit: Experts in the list at most.
        specialists_only: Whether experts that are no specialists are left out.

    Raises:
        UsageError: If neither domain nor modality is given, or a name is not known; says which are.
    """
    if domain is None and modality is None:
        raise UsageError(
            "A domain or a modality is needed to rank experts for.",
            advice=f"Domains: {', '.join(profile.domains)}. Modalities: {', '.join(profile.modalities)}.",
            valid=sorted(profile.domains),
        )
    selected = profile.where(domain=domain, modality=modality, phase=phase)
    rest = profile.where(phase=phase) & ~selected
    results = specialisation(profile, selected, rest, component)
    places = [
        (not special, -float(share), index, expert)
        for index, result in enumerate(results)
        for expert, (special, share) in enumerate(zip(result.specialists, result.shares, strict=True))
        if special or not specialists_only
    ]
    places.sort()
    return Ranking(
        model=profile.model,
        identity=profile.identity,
        domain=domain,
        modality=modality,
        phase=phase,
        tokens=max((result.tokens for result in results), default=0),
        blocks=min((result.blocks for result in results), default=0),
        specialists=sum(int(result.specialists.sum()) for result in results),
        total=sum(result.shape.experts for result in results),
        experts=_in_order(results, [(index, expert) for *_, index, expert in places[:limit]]),
    )


def _in_order(results: list[Specialisation], places: list[tuple[int, int]]) -> tuple[RankedExpert, ...]:
    """Figures of experts (index of the bank, number) in their order; computed bank by bank, which is quicker."""
    found: dict[tuple[int, int], RankedExpert] = {}
    for index in {index for index, _ in places}:
        experts = [expert for where, expert in places if where == index]
        for figures in ranked_experts(results[index], experts):
            found[index, figures.expert_id] = figures
    return tuple(found[place] for place in places)


def ranked_experts(result: Specialisation, experts: Sequence[int]) -> list[RankedExpert]:
    """The figures of some experts of a bank."""
    low, high = result.intervals(experts)
    return [_ranked(result, expert, float(low[place]), float(high[place])) for place, expert in enumerate(experts)]


def _ranked(result: Specialisation, expert: int, low: float, high: float) -> RankedExpert:
    share = float(result.shares[expert])
    return RankedExpert(
        **result.shape.bank._asdict(),
        expert_id=expert,
        tokens=result.tokens,
        activations=int(result.activations[expert]),
        specialisation=share,
        low=figure(low),
        high=figure(high),
        chance=result.chance,
        lift=share / result.chance if result.chance > 0 else 0.0,
        others=figure(result.others[expert]),
        gate_share=float(result.gate_shares[expert]),
        q_value=figure(result.q_chance[expert]),
        q_others=figure(result.q_others[expert]),
        replicated=bool(result.replicated[expert] and result.replicated_others[expert]),
        specialist=bool(np.bool_(result.specialists[expert])),
    )
