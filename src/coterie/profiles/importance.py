"""How much a bank would miss each of its experts: what pruning goes by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coterie.errors import UsageError
from coterie.profiles.facts import MODALITIES
from coterie.profiles.usage import BankUsage, Floats, Usage
from coterie.spec import BankKey

ImportanceMeasure = Literal["reap", "ean", "frequency"]
"""``reap``: mean over an expert's tokens of gate weight × ‖output‖₂ (Lasby and others, "REAP the experts", 2025).
``ean``: the sum of the same. ``frequency``: how many tokens chose the expert."""

IMPORTANCE_MEASURES: tuple[ImportanceMeasure, ...] = get_args(ImportanceMeasure)

FEW_OBSERVATIONS = 32
"""Below so many activations per expert on average, the order of experts is mostly chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Tokens that have an equal say in which experts stay.

    Attributes:
        modality: Theirs.
        domain: Theirs; None for all domains.
    """

    modality: str
    domain: str | None

    def __str__(self) -> str:
        return self.modality if self.domain is None else f"{self.modality} of {self.domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How important the experts of each bank are.

    Attributes:
        scores: Bank → [E], each between 0 and 1: the largest of an expert's shares of its bank's sum.
        claims: Component → the claims that decided.
        activations: The fewest activations per expert, on average over a bank, that any claim has.
    """

    scores: Mapping[BankKey, Floats]
    claims: Mapping[str, tuple[Claim, ...]]
    activations: float


def importance(
    usage: Usage,
    banks: Collection[BankKey],
    by: ImportanceMeasure,
    required: Mapping[str, Collection[str]],
    *,
    domains: Sequence[str] = (),
    modalities: Sequence[str] = (),
) -> Importance:
    """The importance of the experts of some banks, by what a profile has recorded of them.

    Tokens are divided into claims: one for each modality, or, if domains are named, for each modality of each domain.
    Within a claim an expert's score is its share of the bank's sum of the measure. Its importance is the largest of its
    scores: what a single modality or domain needs is not outvoted by another of which more was recorded.

    Args:
        usage: The profile's counters.
        banks: The banks whose experts are to be ranked.
        by: The measure.
        required: Component → modalities that its banks serve.
        domains: Only tokens of these; all by default.
        modalities: Only tokens of these; all that the component serves by default.

    Raises:
        UsageError: If a name is not known, or nothing, or nothing of a required modality, was recorded of a bank.
    """
    for domain in domains:
        if domain not in usage.domains:
            raise UsageError.unknown("domain", domain, usage.domains)
    for modality in modalities:
        if modality not in MODALITIES:
            raise UsageError.unknown("modality", modality, MODALITIES)
        if modality not in usage.modalities:
            raise UsageError.unknown("modality of this profile", modality, usage.modalities)
    scores: dict[BankKey, Floats] = {}
    claims: dict[str, tuple[Claim, ...]] = {}
    fewest = np.inf
    for bank in sorted(banks):
        table = usage.banks.get(bank)
        if table is None:
            raise UsageError(
                f"Nothing was recorded of {bank}.",
                advice="Record a profile of the whole model: coterie profile record.",
                got=str(bank),
            )
        found = _claims(usage, table, domains, modalities)
        if not modalities:
            _check_modalities(bank, {claim.modality for claim in found}, required.get(bank.component, ()), domains)
        if not found:
            raise UsageError(
                f"Nothing was recorded of {bank} for {' and '.join([*modalities, *domains])}.",
                advice=f"Recorded of it: {', '.join(sorted(set(_recorded(usage, table))))}.",
                got=str(bank),
            )
        by_claim = [_scores(table, rows, by, f"{bank}, {claim}") for claim, rows in found.items()]
        scores[bank] = np.max(by_claim, axis=0)
        claims[bank.component] = tuple(dict.fromkeys([*claims.get(bank.component, ()), *found]))
        fewest = min(fewest, *(float(table.activations[rows].sum(axis=0).mean()) for rows in found.values()))
    return Importance(scores=scores, claims=claims, activations=float(fewest))


def _claims(
    usage: Usage, table: BankUsage, domains: Sequence[str], modalities: Sequence[str]
) -> dict[Claim, list[int]]:
    """Claim → rows of the groups of tokens that make it."""
    found: dict[Claim, list[int]] = {}
    for row, group in enumerate(usage.groups):
        wanted = (not domains or group.domain in domains) and (not modalities or group.modality in modalities)
        if wanted and table.activations[row].any():
            claim = Claim(modality=group.modality, domain=group.domain if domains else None)
            found.setdefault(claim, []).append(row)
    return found


def _recorded(usage: Usage, table: BankUsage) -> list[str]:
    return [f"{group.modality} of {group.domain}" for group, n in zip(usage.groups, table.tokens, strict=True) if n]


def _check_modalities(bank: BankKey, found: set[str], required: Collection[str], domains: Sequence[str]) -> None:
    lacking = sorted(set(required) - found)
    if not lacking:
        return
    where = f"of {' and '.join(domains)} " if domains else ""
    raise UsageError(
        f"The model takes or makes {' and '.join(lacking)}, and the profile has recorded nothing of that {where}in "
        f"{bank}. Experts that it needs would be removed.",
        advice=f"Record {lacking[0]} into the profile, too, or name the modalities that are to be kept, such as "
        f"--modality {min(found, default='text')}, and the others may be lost.",
        lacking=lacking,
        bank=str(bank),
    )


def _scores(table: BankUsage, rows: list[int], by: ImportanceMeasure, what: str) -> Floats:
    """[E] each expert's share of the sum of the measure over these rows."""
    measured = table.reap_counts[rows].sum(axis=0)
    if by != "frequency" and not measured.any():
        raise UsageError(
            f"The profile has no sizes of experts' outputs for {what}, and {by} needs them.",
            advice="Record the profile again with --contributions, or prune --by frequency.",
            got=what,
        )
    values: Floats
    if by == "frequency":
        values = table.activations[rows].sum(axis=0).astype(np.float64)
    elif by == "ean":
        values = table.reap_sum[rows].sum(axis=0)
    else:
        sums = table.reap_sum[rows].sum(axis=0)
        values = np.divide(sums, measured, out=np.zeros(len(sums)), where=measured > 0)
    total = float(values.sum())
    return values / total if total > 0 else values
