"""Which experts are chosen together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import Counts
from coterie.profiles.inference import (
    ALPHA,
    LEAST_BLOCKS,
    Floats,
    Sample,
    above,
    block_numbers,
    false_discovery_rates,
)
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.reading import read_pairs, read_runs
from coterie.profiles.specialisation import figure
from coterie.spec import BankKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """An expert that is chosen together with another one, i.

    Attributes:
        expert_id: Its number, j.
        together: N_ij, tokens that selected both.
        coactivation: N_ij / N_i.
        lift: (N_ij / N_i) / (N_j / N): how much more often than j is chosen anyway.
        q_value: Of `not more often`, over all experts of the layer (Benjamini–Hochberg); None with too few segments.
        replicated: Whether it shows in both halves of the data.
    """

    expert_id: int
    together: int
    coactivation: float
    lift: float
    q_value: float | None
    replicated: bool


def pair_matrix(pairs: Counts, experts: int) -> Counts:
    """Counts [E·(E−1)/2] of the upper triangle as a symmetric matrix [E, E] with zeros on its diagonal."""
    matrix = np.zeros((experts, experts), np.int64)
    matrix[np.triu_indices(experts, 1)] = pairs
    return matrix + matrix.T


def pair_counts(profile: Profile, database: ProfileDatabase, bank: BankKey) -> Iterator[tuple[int, Counts]]:
    """Counts of pairs of one bank: index of the segment in ``profile.segments``, and int64 [E·(E−1)/2]; ascending."""
    index = {place: position for position, place in enumerate(profile.segments)}
    with database.reading() as connection:
        for run_index, run in enumerate(read_runs(connection, profile.identity)):
            if bank in run.bank_ids:
                for number, pairs in read_pairs(connection, run, bank):
                    # What was recorded after the profile was read is not part of it.
                    if (run_index, number) in index:
                        yield index[run_index, number], pairs


def lifts(table: BankTable, matrix: Counts) -> Floats:
    """Lift of every pair [E, E]: N_ij · N / (N_i · N_j); 0 where an expert was never selected.

    Choosing k of E at once makes the lift of independent experts a little less than 1.
    """
    totals = table.activations.sum(axis=0).astype(np.float64)
    expected = np.outer(totals, totals) / max(int(table.tokens.sum()), 1)
    found: Floats = np.divide(matrix, expected, out=np.zeros(matrix.shape), where=expected > 0)
    return found


def companions(
    profile: Profile, database: ProfileDatabase, bank: BankKey, expert: int, *, limit: int = 5
) -> tuple[Companion, ...]:
    """The experts that are chosen together with one more often than they are chosen anyway, by lift.

    Tested as shares are (:mod:`coterie.profiles.inference`): of the tokens that select i, in blocks of segments, the
    share that select j as well, against j's share of all tokens. Only those with q ≤ 0.05 that show in both halves of
    the blocks (every other one) are companions.

    Args:
        profile: Of the model.
        database: Where the profile was read from.
        bank: Of the expert.
        expert: Its number.
        limit: Companions at most.
    """
    table = profile.banks[bank]
    sample = _pair_sample(table, pair_counts(profile, database, bank), expert)
    if sample is None:
        return ()
    base = table.activations.sum(axis=0) / max(int(table.tokens.sum()), 1)
    p_values = above(sample, base)
    p_values[expert] = np.nan
    q_values = false_discovery_rates(p_values)
    replicated = np.zeros(len(base), np.bool_)
    if sample.blocks >= LEAST_BLOCKS:
        replicated = np.logical_and.reduce([above(half, base) <= ALPHA for half in sample.halves(alternating=True)])
    shares = sample.shares()
    lift = np.divide(shares, base, out=np.zeros_like(shares), where=base > 0)
    found = [
        Companion(
            expert_id=other,
            together=round(float(sample.hits[:, other].sum())),
            coactivation=float(shares[other]),
            lift=float(lift[other]),
            q_value=figure(q_values[other]),
            replicated=bool(replicated[other]),
        )
        for other in np.argsort(-lift, kind="stable").tolist()
        if other != expert and replicated[other] and q_values[other] <= ALPHA
    ]
    return tuple(found[:limit])


def _pair_sample(table: BankTable, pairs: Iterator[tuple[int, Counts]], expert: int) -> Sample | None:
    """Tokens that select the expert, and of these those that select each other one, by block of segments."""
    experts = table.shape.experts
    others = np.arange(experts)
    low, high = np.minimum(others, expert), np.maximum(others, expert)
    # Place of the pair (low, high) in the upper triangle, row by row; the expert itself is no pair.
    places = np.where(low == high, 0, low * (2 * experts - low - 1) // 2 + (high - low - 1))
    selecting = np.bincount(table.segments, table.activations[:, expert])
    tokens: list[float] = []
    rows: list[Counts] = []
    for segment, counts in pairs:
        if segment < len(selecting) and selecting[segment] and len(counts):
            tokens.append(selecting[segment])
            rows.append(counts[places] * (low != high))
    if not rows:
        return None
    begins = np.flatnonzero(np.diff(block_numbers(np.array(tokens, np.int64)), prepend=-1))
    return Sample(
        np.add.reduceat(np.array(tokens), begins), np.add.reduceat(np.stack(rows), begins, axis=0).astype(np.float64)
    )
