"""How much a bank would miss each of its experts: what pruning goes by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coterie.profiles.claims import Claim, check_outputs, claims_of
from coterie.profiles.usage import BankUsage, Floats, Usage
from coterie.spec import BankKey

ImportanceMeasure = Literal["reap", "ean", "frequency"]
"""``reap``: mean over an expert's tokens of gate weight × ‖output‖₂ (Lasby and others, "REAP the experts", 2025).
``ean``: the sum of the same. ``frequency``: how many tokens chose the expert."""

IMPORTANCE_MEASURES: tuple[ImportanceMeasure, ...] = get_args(ImportanceMeasure)

FEW_OBSERVATIONS = 32
"""Below so many activations per expert on average, the order of experts is mostly chance."""


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
    scores: dict[BankKey, Floats] = {}
    claims: dict[str, tuple[Claim, ...]] = {}
    fewest = np.inf
    at_stake = "Experts that it needs would be removed."
    for bank, found in claims_of(usage, banks, required, domains=domains, modalities=modalities, at_stake=at_stake):
        table = usage.banks[bank]
        by_claim = [_scores(table, rows, by, f"{bank}, {claim}") for claim, rows in found.items()]
        scores[bank] = np.max(by_claim, axis=0)
        claims[bank.component] = tuple(dict.fromkeys([*claims.get(bank.component, ()), *found]))
        fewest = min(fewest, *(float(table.activations[rows].sum(axis=0).mean()) for rows in found.values()))
    return Importance(scores=scores, claims=claims, activations=float(fewest))


def _scores(table: BankUsage, rows: list[int], by: ImportanceMeasure, what: str) -> Floats:
    """[E] each expert's share of the sum of the measure over these rows."""
    if by != "frequency":
        check_outputs(table, rows, what, needs=by, instead=", or prune --by frequency")
    values: Floats
    if by == "frequency":
        values = table.activations[rows].sum(axis=0).astype(np.float64)
    elif by == "ean":
        values = table.reap_sum[rows].sum(axis=0)
    else:
        sums, measured = table.reap_sum[rows].sum(axis=0), table.reap_counts[rows].sum(axis=0)
        values = np.divide(sums, measured, out=np.zeros(len(sums)), where=measured > 0)
    total = float(values.sum())
    return values / total if total > 0 else values
