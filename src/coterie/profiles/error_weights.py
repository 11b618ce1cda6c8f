"""How much an error of each expert matters: what the choice of its bits goes by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from coterie.profiles.claims import Claim, check_outputs, claims_of
from coterie.profiles.usage import BankUsage, Floats, Usage
from coterie.spec import BankKey

WeightMeasure = Literal["reap", "energy"]
"""``reap``: mean over an expert's tokens of gate weight × ‖output‖₂. ``energy``: the sum of its square."""

PRIOR_TOKENS = 32
"""m: tokens of the average expert of its layer that every expert is given beside its own, for ``reap``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorWeights:
    """How much an error of each expert matters.

    Attributes:
        measure: What the weights are.
        weights: Bank → [E]. Those of different layers of a component are comparable.
        rates: Bank → [E] share of the tokens that select the expert, each claim as much as the others.
        claims: Component → the tokens that decided.
        activations: The fewest activations per expert, on average over a bank, that any claim has.
        fingerprint: Digest of all counters that decided, in hexadecimal digits.
    """

    measure: WeightMeasure
    weights: Mapping[BankKey, Floats]
    rates: Mapping[BankKey, Floats]
    claims: Mapping[str, tuple[Claim, ...]]
    activations: float
    fingerprint: str


def error_weights(
    usage: Usage,
    banks: Collection[BankKey],
    required: Mapping[str, Collection[str]],
    *,
    domains: Sequence[str] = (),
    modalities: Sequence[str] = (),
) -> ErrorWeights:
    """How much an error of each expert of some banks matters, by what a profile has recorded.

    Tokens are divided into claims, as in :func:`coterie.profiles.importance`: by modality, and by domain too if domains
    are named.

    Without domains an expert's weight is the mean over its tokens of gate weight × ‖output‖₂, ``(Σ + m · mean of its
    layer) / (n + m)`` with m = 32. With several claims it is the largest of their means, each of which has m tokens of
    that mean over all beside its own. It is no sum: sums give the bits to what most of
    the recorded text uses, and a small domain with experts of its own gets worse than with equal bits for all.

    With domains it is the mean over the claims of the expert's share of its layer's energy, Σ (gate weight ×
    ‖output‖₂)², of which a profile has Σ² / n. What no asked-for domain uses has no weight.

    Args:
        usage: What was recorded.
        banks: Those of whose experts the weights are wanted.
        required: Component → modalities that the profile must know, if none are named.
        domains: Only tokens of these; all by default.
        modalities: Only tokens of these; all that the component serves by default.

    Raises:
        UsageError: If a name is not known, or nothing, or nothing of a required modality, was recorded of a bank, or
            no sizes of outputs.
    """
    claims: dict[str, tuple[Claim, ...]] = {}
    weights: dict[BankKey, Floats] = {}
    rates: dict[BankKey, Floats] = {}
    fewest = np.inf
    digest = xxhash.xxh3_128()
    at_stake = f"Experts that it needs would {'be left out' if domains else 'get the fewest bits'}."
    for bank, found in claims_of(usage, banks, required, domains=domains, modalities=modalities, at_stake=at_stake):
        table = usage.banks[bank]
        claims[bank.component] = tuple(dict.fromkeys([*claims.get(bank.component, ()), *found]))
        for claim, rows in found.items():
            check_outputs(table, rows, f"{bank}, {claim}", needs="choosing bits by a profile")
            digest.update(f"{bank} {claim}".encode())
            for row in rows:
                for counters in (table.reap_sum, table.reap_counts, table.activations):
                    digest.update(np.ascontiguousarray(counters[row]).data)
        fewest = min(fewest, *(float(table.activations[rows].sum(axis=0).mean()) for rows in found.values()))
        by_claim = list(found.values())
        weights[bank] = (
            np.mean([_energy(table, rows) for rows in by_claim], axis=0) if domains else _mean(table, by_claim)
        )
        rates[bank] = np.mean(
            [table.activations[rows].sum(axis=0) / max(1, int(table.tokens[rows].sum())) for rows in found.values()],
            axis=0,
        )
    return ErrorWeights(
        measure="energy" if domains else "reap",
        weights=weights,
        rates=rates,
        claims=claims,
        activations=float(fewest),
        fingerprint=digest.hexdigest(),
    )


def _mean(table: BankUsage, by_claim: list[list[int]]) -> Floats:
    """[E] the mean of each expert over all tokens, shrunk towards that of the layer; or the largest of the claims'."""
    every = [row for rows in by_claim for row in rows]
    overall = table.reap_sum[every].sum() / table.reap_counts[every].sum()
    found = _shrunk(table, every, overall)
    return found if len(by_claim) == 1 else np.max([_shrunk(table, rows, found) for rows in by_claim], axis=0)


def _shrunk(table: BankUsage, rows: list[int], towards: Floats | float) -> Floats:
    sums, counts = table.reap_sum[rows].sum(axis=0), table.reap_counts[rows].sum(axis=0)
    found: Floats = (sums + PRIOR_TOKENS * towards) / (counts + PRIOR_TOKENS)
    return found


def _energy(table: BankUsage, rows: list[int]) -> Floats:
    """[E] each expert's share of the layer's energy."""
    sums, counts = table.reap_sum[rows].sum(axis=0), table.reap_counts[rows].sum(axis=0)
    energy: Floats = np.divide(sums**2, counts, out=np.zeros(len(sums)), where=counts > 0)
    # Outputs may have been measured of some tokens only.
    energy *= np.divide(table.activations[rows].sum(axis=0), counts, out=np.zeros(len(sums)), where=counts > 0)
    total = float(energy.sum())
    return energy / total if total > 0 else energy
