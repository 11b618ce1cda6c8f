"""Which experts are chosen more often for some tokens than chance, and than for all other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.profiles.facts import BankShape, Counts
from coterie.profiles.inference import (
    ALPHA,
    LEAST_BLOCKS,
    Floats,
    Sample,
    above,
    difference,
    false_discovery_rates,
    share_interval,
)
from coterie.profiles.profile import BankTable, Profile

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialisation:
    """One bank's experts on a selection of tokens D; arrays are [E].

    Attributes:
        shape: The bank.
        blocks: Blocks of consecutive segments that D has: the sample size.
        tokens: N_D, tokens of D.
        activations: N_{e,D}, of these that selected e.
        shares: Domain specialisation N_{e,D} / N_D (Muennighoff and others, "OLMoE", 2024, section 5).
        chance: Σ_e N_{e,D} / (N_D · E), the share that each expert would have if the router did not choose: k / E.
        others: Share of all other tokens that selected e; NaN if there are none.
        gate_shares: Share of the gate mass that D gave to experts of this bank which e got.
        q_chance: q-value of `not above chance`, over all experts of the question.
        q_others: q-value of `not above the share among other tokens`; NaN if there are none.
        replicated: Whether an expert is above chance in each half of D's blocks by itself.
        replicated_others: Whether it is above its share among other tokens there; true if there are none.
        sample: Tokens and activations of D, block by block.
    """

    shape: BankShape
    blocks: int
    tokens: int
    activations: Counts
    shares: Floats
    chance: float
    others: Floats
    gate_shares: Floats
    q_chance: Floats
    q_others: Floats
    replicated: Flags
    replicated_others: Flags
    sample: Sample

    def intervals(self, experts: Sequence[int]) -> tuple[Floats, Floats]:
        """Lower and upper ends of the 95 % intervals of some experts' shares."""
        return share_interval(self.sample.of(experts))

    @property
    def above_chance(self) -> Flags:
        """[E] whether an expert is chosen more often than chance: q ≤ 0.05, and so in both halves of the data."""
        return (self.q_chance <= ALPHA) & self.replicated

    @property
    def specialists(self) -> Flags:
        """[E] whether an expert serves D in particular: above chance, and above its share among other tokens.

        The second condition tells a specialist from an expert that is chosen for everything; where nothing else was
        recorded it cannot be tested, and does not hold anybody back.
        """
        particular = (self.q_others <= ALPHA) & self.replicated_others
        return self.above_chance & (particular | np.isnan(self.others))


@dataclass(frozen=True, slots=True)
class _Tests:
    """p-values of one bank, before they are compared with those of others."""

    table: BankTable
    rows: npt.NDArray[np.intp]
    sample: Sample
    chance: float
    others: Floats
    p_chance: Floats
    p_others: Floats
    replicated: Flags
    replicated_others: Flags


def specialisation(
    profile: Profile, selected: Flags, rest: Flags, component: str | None = None
) -> list[Specialisation]:
    """Examines all experts on a selection of tokens, bank by bank.

    An expert's share is tested against chance and against its share among the rest, both one-sided, with blocks of
    segments as the sampling unit (:mod:`coterie.profiles.inference`). q-values are over all experts of all banks. What
    a whole profile shows must show in each half of the blocks, too, at p ≤ 0.05 for both tests; with fewer than four
    blocks nothing is called replicated.

    Args:
        profile: Of the model.
        selected: The groups of D, from :meth:`Profile.where`.
        rest: The groups to compare with.
        component: Only its banks.
    """
    tests = [_test(table, table.rows(selected), table.rows(rest)) for table in profile.tables(component)]
    tests = [test for test in tests if len(test.rows)]
    if not tests:
        return []
    q_chance = _over_all([test.p_chance for test in tests])
    q_others = _over_all([test.p_others for test in tests])
    return [_result(test, one, other) for test, one, other in zip(tests, q_chance, q_others, strict=True)]


def _over_all(p_values: Sequence[Floats]) -> list[Floats]:
    """q-values over all banks, bank by bank."""
    together = false_discovery_rates(np.concatenate(p_values))
    return np.split(together, np.cumsum([len(values) for values in p_values])[:-1])


def _test(table: BankTable, rows: npt.NDArray[np.intp], rest: npt.NDArray[np.intp]) -> _Tests:
    sample, others = table.sample(rows), table.sample(rest)
    chance = float(sample.hits.sum() / (sample.total * table.shape.experts)) if sample.total else np.nan
    p_chance, p_others = _p_values(sample, others, chance)
    replicated = [np.zeros(table.shape.experts, np.bool_)] * 2
    if sample.blocks >= LEAST_BLOCKS:
        (one, one_others), (two, two_others) = (_p_values(half, others, chance) for half in sample.halves())
        unknown = np.isnan(p_others)
        replicated = [
            np.maximum(one, two) <= ALPHA,
            (np.maximum(one_others, two_others) <= ALPHA) | unknown,
        ]
    return _Tests(table, rows, sample, chance, others.shares(), p_chance, p_others, *replicated)


def _p_values(sample: Sample, others: Sample, chance: float) -> tuple[Floats, Floats]:
    if sample.blocks < 2:
        nothing = np.full(sample.hits.shape[1], np.nan)
        return nothing, nothing
    return above(sample, chance), difference(sample, others).p_above


def _result(test: _Tests, q_chance: Floats, q_others: Floats) -> Specialisation:
    gates = test.table.gate_mass[test.rows].sum(axis=0)
    return Specialisation(
        shape=test.table.shape,
        blocks=test.sample.blocks,
        tokens=round(test.sample.total),
        activations=test.table.activations[test.rows].sum(axis=0),
        shares=test.sample.shares(),
        chance=test.chance,
        others=test.others,
        gate_shares=gates / gates.sum() if gates.sum() > 0 else np.zeros_like(gates),
        q_chance=q_chance,
        q_others=q_others,
        replicated=test.replicated,
        replicated_others=test.replicated_others,
        sample=test.sample,
    )


def figure(value: float | np.float64 | None) -> float | None:
    """A number for people and JSON: None for what could not be computed."""
    return None if value is None or not np.isfinite(value) else float(value)
