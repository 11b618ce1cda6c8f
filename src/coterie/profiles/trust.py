"""Trust: how much an expert contributes when it is chosen, as far as is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from coterie.profiles.facts import BankShape, Counts
from coterie.profiles.inference import Floats
from coterie.profiles.profile import BankTable
from coterie.profiles.usage import BankUsage

PRIOR_OBSERVATIONS = 32
"""m: observations that count as much as the prior trust of 0.5."""

TrustBasis = Literal["reap", "gate"]
"""What trust is made of: REAP scores, or mean gate weights where outputs were not measured."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Trust in the experts of one bank; arrays are [E].

    Attributes:
        shape: The bank.
        scores: Trust, between 0 and 1.
        contributions: Mean contribution of each expert when chosen; NaN where nothing was observed.
        observations: n, activations behind it.
        basis: What a contribution is.
    """

    shape: BankShape
    scores: Floats
    contributions: Floats
    observations: Counts
    basis: TrustBasis


def trust(table: BankTable | BankUsage) -> Trust:
    """Trust in each expert of a bank: (n · rank + m · 0.5) / (n + m), m = 32.

    The rank, from 0 for the least to 1 for the largest, ties sharing theirs, is that of the REAP score within the
    layer: the mean over the tokens that select an expert of gate weight × ‖expert output‖₂ (Lasby and others, "REAP the
    experts", 2025). Few observations shrink it towards 0.5. Where no outputs were measured in the whole bank, the mean
    gate weight stands in.
    """
    measured = table.reap_counts.sum() > 0
    sums = (table.reap_sum if measured else table.gate_mass).sum(axis=0)
    observations = (table.reap_counts if measured else table.activations).sum(axis=0)
    seen = observations > 0
    means = np.divide(sums, observations, out=np.full(len(sums), np.nan), where=seen)
    ranks = np.full(len(sums), 0.5)
    if seen.sum() > 1:
        ranks[seen] = (_ranks(means[seen]) - 1) / (seen.sum() - 1)
    scores = (observations * ranks + PRIOR_OBSERVATIONS * 0.5) / (observations + PRIOR_OBSERVATIONS)
    return Trust(table.shape, scores, means, observations, "reap" if measured else "gate")


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    shared: Floats = (np.cumsum(sizes) - (sizes - 1) / 2)[places]
    return shared
