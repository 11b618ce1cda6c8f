"""What distinguishes one domain from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.errors import UsageError
from coterie.profiles.inference import ALPHA, LEAST_BLOCKS, Difference, difference, false_discovery_rates
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.specialisation import Flags, figure

CONTRAST_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDifference:
    """One expert's shares of two domains.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number there.
        first: Share of the first domain's tokens that select it.
        second: Share of the second domain's.
        difference: first − second.
        low: Lower end of the difference's 95 % interval (Welch); None with too few segments.
        high: Upper end; None likewise.
        q_value: Of `no difference`, over all experts (Benjamini–Hochberg); None likewise.
        replicated: Whether the difference shows in both halves of the data, in the same direction, at p ≤ 0.05.
        distinguishes: Whether both hold: q ≤ 0.05, and replicated.
    """

    component: str
    layer: int
    bank: str
    expert_id: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    q_value: float | None
    replicated: bool
    distinguishes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDivergence:
    """How far apart two domains are in one bank.

    Attributes:
        component: Part of the model.
        layer: The layer.
        bank: The bank.
        divergence: Jensen–Shannon divergence of the two distributions of activations over experts, in bits: 0 if they
            are equal, 1 if no expert serves both (Lin, "Divergence measures based on the Shannon entropy", 1991).
    """

    component: str
    layer: int
    bank: str
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two domains, compared.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        first: The one domain.
        second: The other.
        first_tokens: Tokens of the first.
        second_tokens: Tokens of the second.
        distinguishing: How many experts distinguish them, shown or not.
        total: Experts that were examined.
        layers: Divergence of each bank.
        experts: Those that distinguish first, then by the size of the difference.
    """

    schema_version: int = CONTRAST_SCHEMA_VERSION
    model: str
    identity: str
    first: str
    second: str
    first_tokens: int
    second_tokens: int
    distinguishing: int
    total: int
    layers: tuple[LayerDivergence, ...]
    experts: tuple[ExpertDifference, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    table: BankTable
    shares: tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]
    tokens: tuple[int, int]
    found: Difference
    replicated: Flags


def compare_domains(
    profile: Profile,
    first: str,
    second: str,
    *,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
    limit: int | None = None,
) -> Contrast:
    """Finds the experts that one domain uses more than another.

    Blocks of segments are the sampling unit (:mod:`coterie.profiles.inference`).

    Args:
        profile: Of the model.
        first: A domain.
        second: Another.
        modality: Only tokens of this modality.
        phase: Only tokens of this phase.
        component: Only this part of the model.
        limit: Experts in the list at most.

    Raises:
        UsageError: If the two are the same, or a name is not known; says which are.
    """
    if first == second:
        raise UsageError(f"{first!r} cannot be compared with itself.", valid=sorted(profile.domains))
    masks = [profile.where(domain=domain, modality=modality, phase=phase) for domain in (first, second)]
    compared = [_compare(table, *masks) for table in profile.tables(component)]
    compared = [one for one in compared if all(one.tokens)]
    experts: list[ExpertDifference] = []
    if compared:
        q_values = false_discovery_rates(np.concatenate([one.found.p_differs for one in compared]))
        parts = np.split(q_values, np.cumsum([one.table.shape.experts for one in compared])[:-1])
        for one, part in zip(compared, parts, strict=True):
            experts += [_expert(one, expert, part[expert]) for expert in range(one.table.shape.experts)]
    experts.sort(key=lambda row: (not row.distinguishes, -abs(row.difference), row.layer, row.expert_id))
    return Contrast(
        model=profile.model,
        identity=profile.identity,
        first=first,
        second=second,
        first_tokens=max((one.tokens[0] for one in compared), default=0),
        second_tokens=max((one.tokens[1] for one in compared), default=0),
        distinguishing=sum(row.distinguishes for row in experts),
        total=len(experts),
        layers=tuple(
            LayerDivergence(**one.table.shape.bank._asdict(), divergence=jensen_shannon(*one.shares))
            for one in compared
        ),
        experts=tuple(experts[:limit]),
    )


def _compare(table: BankTable, first: Flags, second: Flags) -> _Compared:
    samples = [table.sample(table.rows(mask)) for mask in (first, second)]
    found = difference(*samples)
    replicated = np.zeros(table.shape.experts, np.bool_)
    if min(sample.blocks for sample in samples) >= LEAST_BLOCKS:
        halves = [difference(one, two) for one, two in zip(*(sample.halves() for sample in samples), strict=True)]
        up = np.logical_and.reduce([half.p_above <= ALPHA for half in halves])
        down = np.logical_and.reduce([half.p_below <= ALPHA for half in halves])
        replicated = up | down
    shares = tuple(sample.shares() for sample in samples)
    return _Compared(table, shares, (round(samples[0].total), round(samples[1].total)), found, replicated)


def _expert(one: _Compared, expert: int, q_value: float) -> ExpertDifference:
    return ExpertDifference(
        **one.table.shape.bank._asdict(),
        expert_id=expert,
        first=float(one.shares[0][expert]),
        second=float(one.shares[1][expert]),
        difference=float(one.found.value[expert]),
        low=figure(one.found.low[expert]),
        high=figure(one.found.high[expert]),
        q_value=figure(q_value),
        replicated=bool(one.replicated[expert]),
        distinguishes=bool(one.replicated[expert] and q_value <= ALPHA),
    )


def jensen_shannon(
    first: np.ndarray[tuple[int], np.dtype[np.float64]], second: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """Jensen–Shannon divergence of two distributions over experts, in bits; each is scaled to 1 first."""
    if not (first.sum() > 0 and second.sum() > 0):
        return 0.0
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    parts = [np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)]
    return float(min(max(sum(parts) / 2, 0.0), 1.0))
