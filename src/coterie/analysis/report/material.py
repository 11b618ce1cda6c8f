"""What all answers of a report draw on: one component of a profile, its halves, its stretches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from coterie.profiles import BankTable, Estimate, Profile, Stretches, jensen_shannon, profile_halves
from coterie.profiles.halves import group_segments
from coterie.profiles.inference import LEAST_BLOCKS, Floats
from coterie.profiles.separation import SeparatedBy
from coterie.profiles.specialisation import Specialisation, specialisation

Flags = npt.NDArray[np.bool_]
PLURALS: dict[SeparatedBy, str] = {"modality": "modalities", "domain": "domains"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far apart groups of tokens are in one bank, mean of all pairs of groups, in bits; floor: of two halves."""

    divergence: float
    floor: float | None


@dataclass(frozen=True, eq=False)
class Material:
    """A profile of one component, in the forms that answers ask for.

    Attributes:
        profile: The profile.
    """

    profile: Profile

    @classmethod
    def of(cls, profile: Profile, component: str) -> Material:
        """One component's."""
        banks = {key: table for key, table in profile.banks.items() if key.component == component}
        return cls(Profile(profile.runs, profile.segments, profile.groups, banks))

    @cached_property
    def stretches(self) -> Stretches:
        """In 32 stretches."""
        return Stretches(self.profile)

    @cached_property
    def halves(self) -> tuple[Profile, Profile]:
        """In two, with all segments."""
        return profile_halves(self.profile)

    @cached_property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.profile.tokens

    @property
    def experts(self) -> int:
        """Experts in all."""
        return sum(table.shape.experts for table in self.profile.tables())

    @cached_property
    def _known(self) -> dict[SeparatedBy, tuple[str, ...]]:
        segments = group_segments(self.profile) > 0
        found: dict[SeparatedBy, tuple[str, ...]] = {}
        for by in PLURALS:
            names = sorted({getattr(group, by) for group in self.profile.groups})
            rows = {
                name: [i for i, group in enumerate(self.profile.groups) if getattr(group, by) == name] for name in names
            }
            # Each half by itself has to have blocks enough.
            enough = [name for name in names if segments[rows[name]].any(axis=0).sum() >= 2 * LEAST_BLOCKS]
            found[by] = tuple(enough)
        return found

    def known(self, by: SeparatedBy) -> tuple[str, ...]:
        """Modalities, or domains, with at least eight segments, four in each half: others cannot be told of."""
        return self._known[by]

    def too_small(self, by: SeparatedBy) -> tuple[str, ...]:
        """The others that there are."""
        return tuple(sorted({getattr(group, by) for group in self.profile.groups} - set(self.known(by))))

    def tokens_of(self, by: SeparatedBy) -> int:
        """Tokens of the smallest of those that can be told of: what comparisons rest on."""
        totals = self.profile.modalities if by == "modality" else self.profile.domains
        return min((totals[name] for name in self.known(by)), default=0)

    def masks(self, by: SeparatedBy) -> dict[str, Flags]:
        """Name → its groups."""
        return {name: named(self.profile, by, name) for name in self.known(by)}

    def apart(self, by: SeparatedBy) -> tuple[Estimate, tuple[float | None, float | None, float | None]]:
        """Mean over layers of how far groups are apart, and the floor: of the whole, of each half."""
        masks = self.masks(by)
        parts = (self.stretches.profile, *self.stretches.halves())
        whole, first, second = (mean_floor(part, masks) for part in parts)
        return self.stretches.estimate(lambda part: mean_divergence(part, masks), least=0, most=1), (
            whole,
            first,
            second,
        )

    def specialisations(self, by: SeparatedBy, profile: Profile | None = None) -> dict[str, list[Specialisation]]:
        """Name → every bank's experts on its tokens, against all other tokens."""
        masks = self.masks(by)
        everything = np.ones(len(self.profile.groups), np.bool_)
        return {name: specialisation(profile or self.profile, mask, everything & ~mask) for name, mask in masks.items()}


def named(profile: Profile, by: SeparatedBy, name: str) -> Flags:
    """The groups of a modality, or of a domain."""
    return np.array([getattr(group, by) == name for group in profile.groups], dtype=np.bool_)


def apart_in(table: BankTable, masks: dict[str, Flags]) -> Apart | None:
    """How far groups of tokens are apart in a bank; None if fewer than two have tokens."""
    samples = [table.sample(table.rows(mask)) for mask in masks.values()]
    samples = [sample for sample in samples if sample.total]
    if len(samples) < 2:
        return None
    sums = [sample.hits.sum(axis=0) for sample in samples]
    floors: list[float] = []
    for sample in samples:
        if sample.blocks >= 2:
            one, two = sample.halves(alternating=True)
            floors.append(jensen_shannon(one.hits.sum(axis=0), two.hits.sum(axis=0)))
    # The larger floor of each pair, as the pictures have it.
    known = len(floors) == len(samples)
    floor = float(np.mean([max(pair) for pair in combinations(floors, 2)])) if known else None
    return Apart(divergence=float(np.mean([jensen_shannon(*pair) for pair in combinations(sums, 2)])), floor=floor)


def divergences(profile: Profile, masks: dict[str, Flags]) -> list[Apart | None]:
    """Of each bank."""
    return [apart_in(table, masks) for table in profile.tables()]


def mean_divergence(profile: Profile, masks: dict[str, Flags]) -> float | None:
    """Mean over banks; None if groups that are asked about have no tokens."""
    if len(masks) < 2 or not all(_there(profile, mask) for mask in masks.values()):
        return None
    return mean([one.divergence for one in divergences(profile, masks) if one is not None])


def mean_floor(profile: Profile, masks: dict[str, Flags]) -> float | None:
    """Mean over banks of the floors; None if any is not known."""
    found = [one for one in divergences(profile, masks) if one is not None]
    floors = [one.floor for one in found if one.floor is not None]
    return mean(floors) if len(floors) == len(found) else None


def _there(profile: Profile, mask: Flags) -> bool:
    return any(len(table.rows(mask)) for table in profile.tables())


def mean(values: list[float] | Floats) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None
