"""Parts of a profile: two halves that a finding must show in, and folds for the error of any figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from coterie.profiles.inference import LEVEL, block_numbers, special_functions
from coterie.profiles.profile import BankTable, Numbers, Profile

FOLDS = 16
"""Blocks of which one at a time is left out for the error of a figure."""
_LEAST_FOLDS = 4

Statistic = Callable[[Profile], float | None]
"""A figure of a profile; None where it cannot be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its error and its replication.

    Attributes:
        value: Of the whole profile; None if it cannot be computed.
        low: Lower end of its 95 % interval; None with too few segments.
        high: Upper end.
        first: The same figure of the first half of the tokens of each group; None if it cannot be computed.
        second: Of the second half.
    """

    value: float | None
    low: float | None
    high: float | None
    first: float | None
    second: float | None

    @property
    def alike(self) -> bool | None:
        """Whether the halves differ by no more than the error of the whole lets expect; None if that is not known.

        Each half has half of the tokens, so their difference has twice the standard error of the whole.
        """
        if self.low is None or self.high is None or self.first is None or self.second is None:
            return None
        return abs(self.first - self.second) <= self.high - self.low + 1e-12


def profile_halves(profile: Profile) -> tuple[Profile, Profile]:
    """The first half of the tokens of each group (modality, domain, phase), and the second, by segments.

    Both have the same kinds of tokens, of different documents or parts of documents. A group of a single segment is in
    the second half only.
    """
    parts = _parts(profile, 2)
    return _only(profile, lambda part: part == 0, parts), _only(profile, lambda part: part == 1, parts)


def estimate(
    profile: Profile, statistic: Statistic, *, least: float = -np.inf, most: float = np.inf, folds: int = FOLDS
) -> Estimate:
    """A figure of a profile, with a 95 % interval and the same figure of both halves.

    The interval is that of the jackknife with groups of blocks left out (Kott, "The delete-a-group jackknife", Journal
    of Official Statistics 17, 2001): each group of tokens is cut into as many stretches of consecutive segments as
    there are folds, and the figure is computed without each fold in turn; Student's t with one degree of freedom less
    than there are folds. Groups with fewer segments than folds limit their number; with fewer than four nothing is said.

    Args:
        profile: Of the model.
        statistic: The figure.
        least: The smallest value that it can have.
        most: The largest.
        folds: Folds at most.
    """
    value = statistic(profile)
    first, second = (statistic(half) if half.banks else None for half in profile_halves(profile))
    low = high = None
    folds = min(folds, _fewest_segments(profile))
    if value is not None and folds >= _LEAST_FOLDS:
        parts = _parts(profile, folds)
        found = [statistic(_only(profile, lambda part, out=fold: part != out, parts)) for fold in range(folds)]
        left = np.array([one for one in found if one is not None])
        if len(left) == folds:
            variance = (folds - 1) / folds * ((left - left.mean()) ** 2).sum()
            reach = float(special_functions().stdtrit(folds - 1, 1 - (1 - LEVEL) / 2) * np.sqrt(variance))
            low, high = max(value - reach, least), min(value + reach, most)
    return Estimate(value=value, low=low, high=high, first=first, second=second)


def _group_segments(profile: Profile) -> npt.NDArray[np.int64]:
    """[G, S] tokens of each group in each segment, of the bank that saw most."""
    tokens = np.zeros((len(profile.groups), len(profile.segments)), np.int64)
    for table in profile.banks.values():
        seen = np.zeros_like(tokens)
        np.add.at(seen, (table.groups, table.segments), table.tokens)
        tokens = np.maximum(tokens, seen)
    return tokens


def _fewest_segments(profile: Profile) -> int:
    return int((_group_segments(profile) > 0).sum(axis=1).min(initial=len(profile.segments)))


def _parts(profile: Profile, number: int) -> npt.NDArray[np.intp]:
    """[G, S] the part of each group's tokens that each segment belongs to: 0 to number − 1."""
    tokens = _group_segments(profile)
    parts = np.zeros(tokens.shape, np.intp)
    for group, row in enumerate(tokens):
        there = np.flatnonzero(row)
        # One segment alone is more like what comes later than like nothing.
        parts[group, there] = block_numbers(row[there], number) if len(there) > 1 else number - 1
    return parts


def _only(
    profile: Profile, wanted: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.bool_]], parts: npt.NDArray[np.intp]
) -> Profile:
    chosen = wanted(parts)
    banks = {}
    for key, table in profile.banks.items():
        rows = np.flatnonzero(chosen[table.groups, table.segments])
        if len(rows):
            banks[key] = _rows(table, rows)
    return Profile(profile.runs, profile.segments, profile.groups, banks)


def _rows(table: BankTable, rows: Numbers) -> BankTable:
    return replace(
        table,
        segments=table.segments[rows],
        groups=table.groups[rows],
        tokens=table.tokens[rows],
        entropy_sum=table.entropy_sum[rows],
        entropy_squares=table.entropy_squares[rows],
        activations=table.activations[rows],
        gate_mass=table.gate_mass[rows],
        reap_sum=table.reap_sum[rows],
        reap_counts=table.reap_counts[rows],
    )
