"""Parts of a profile: two halves that a finding must show in, and stretches for the error of any figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.profiles.inference import LEVEL, block_numbers, special_functions
from coterie.profiles.profile import BankTable, Profile

FOLDS = 16
"""Folds of which one at a time is left out for the error of a figure."""
STRETCHES = 2 * FOLDS

Statistic = Callable[[Profile], float | None]
"""A figure of a profile; None where it cannot be computed."""

_COUNTERS = (
    "tokens",
    "entropy_sum",
    "entropy_squares",
    "activations",
    "gate_mass",
    "reap_sum",
    "reap_counts",
)


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
    return _only(profile, parts == 0), _only(profile, parts == 1)


class Stretches:
    """A profile whose groups are each cut into 32 stretches of consecutive segments, about equally many tokens each.

    What remains of segments are the numbers of stretches, 0 to 31: the first half of each group's tokens is in those
    below 16. So any figure can be computed many times in little time.

    Attributes:
        profile: The same counters, a row for each group in each stretch.
    """

    def __init__(self, profile: Profile) -> None:
        """Adds up the segments of each stretch."""
        parts = _parts(profile, STRETCHES)
        banks = {key: _added(table, parts[table.groups, table.segments]) for key, table in profile.banks.items()}
        self.profile = Profile(profile.runs, [(0, number) for number in range(STRETCHES)], profile.groups, banks)
        self._numbers = np.broadcast_to(np.arange(STRETCHES), (len(profile.groups), STRETCHES))

    @cached_property
    def halves(self) -> tuple[Profile, Profile]:
        """Stretches 0 to 15, and 16 to 31."""
        half = self._numbers // FOLDS
        return _only(self.profile, half == 0), _only(self.profile, half == 1)

    def estimate(self, statistic: Statistic, *, least: float = -np.inf, most: float = np.inf) -> Estimate:
        """A figure, with a 95 % interval and the same figure of both halves.

        The interval is that of the jackknife with groups of blocks left out (Kott, "The delete-a-group jackknife",
        Journal of Official Statistics 17, 2001): the figure is computed without each of 16 pairs of neighbouring
        stretches in turn; Student's t with 15 degrees of freedom. Where one of these cannot be computed, there is none.

        Args:
            statistic: The figure.
            least: The smallest value that it can have.
            most: The largest.
        """
        value = statistic(self.profile)
        first, second = (statistic(half) if half.banks else None for half in self.halves)
        low = high = None
        if value is not None and len({part for table in self.profile.banks.values() for part in table.segments}) > 3:
            left = [statistic(_only(self.profile, self._numbers // 2 != fold)) for fold in range(FOLDS)]
            known = np.array([one for one in left if one is not None])
            if len(known) == FOLDS:
                variance = (FOLDS - 1) / FOLDS * ((known - known.mean()) ** 2).sum()
                reach = float(special_functions().stdtrit(FOLDS - 1, 1 - (1 - LEVEL) / 2) * np.sqrt(variance))
                low, high = max(value - reach, least), min(value + reach, most)
        return Estimate(value=value, low=low, high=high, first=first, second=second)


def group_segments(profile: Profile) -> npt.NDArray[np.int64]:
    """[G, S] tokens of each group in each segment, of the bank that saw most."""
    tokens = np.zeros((len(profile.groups), len(profile.segments)), np.int64)
    for table in profile.banks.values():
        seen = np.zeros_like(tokens)
        np.add.at(seen, (table.groups, table.segments), table.tokens)
        tokens = np.maximum(tokens, seen)
    return tokens


def _parts(profile: Profile, number: int) -> npt.NDArray[np.intp]:
    """[G, S] the part of each group's tokens that each segment belongs to: 0 to number − 1."""
    tokens = group_segments(profile)
    parts = np.zeros(tokens.shape, np.intp)
    for group, row in enumerate(tokens):
        there = np.flatnonzero(row)
        blocks = block_numbers(row[there], number)
        # A group of few segments has few parts, which are spread over all.
        parts[group, there] = (2 * blocks + 1) * number // (2 * (blocks.max(initial=0) + 1))
    return parts


def _only(profile: Profile, wanted: npt.NDArray[np.bool_]) -> Profile:
    """The rows of some segments of each group [G, S]."""
    banks = {}
    for key, table in profile.banks.items():
        rows = np.flatnonzero(wanted[table.groups, table.segments])
        if len(rows):
            parts: dict[str, Any] = {name: getattr(table, name)[rows] for name in (*_COUNTERS, "segments", "groups")}
            banks[key] = replace(table, **parts)
    return Profile(profile.runs, profile.segments, profile.groups, banks)


def _added(table: BankTable, parts: npt.NDArray[np.intp]) -> BankTable:
    """The rows of each part and group in one."""
    order = np.lexsort((table.groups, parts))
    segments, groups = parts[order], table.groups[order]
    starts = np.flatnonzero((np.diff(segments, prepend=-1) != 0) | (np.diff(groups, prepend=-1) != 0))
    sums: dict[str, Any] = {name: np.add.reduceat(getattr(table, name)[order], starts, axis=0) for name in _COUNTERS}
    return replace(table, segments=segments[starts], groups=groups[starts], **sums)
