"""What all answers of a report draw on: one component of a profile, its halves, its stretches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from coterie.profiles import Estimate, Profile, Stretches, profile_halves
from coterie.profiles.halves import group_segments
from coterie.profiles.inference import LEAST_SEGMENTS, Floats
from coterie.profiles.separation import SeparatedBy, group_masks, group_samples, halves_apart, larger, samples_apart
from coterie.profiles.specialisation import Specialisation, specialisation

Flags = npt.NDArray[np.bool_]
PLURALS: dict[SeparatedBy, str] = {"modality": "modalities", "domain": "domains"}


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
            enough = [name for name in names if segments[rows[name]].any(axis=0).sum() >= LEAST_SEGMENTS]
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
        masks = group_masks(self.profile, by)
        return {name: masks[name] for name in self.known(by)}

    def apart(self, by: SeparatedBy) -> tuple[Estimate, tuple[float | None, float | None, float | None]]:
        """Mean over layers of how far groups are apart, and the floor: of the whole, of each half."""
        masks = self.masks(by)
        parts = (self.stretches.profile, *self.stretches.halves)
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


def divergences(profile: Profile, masks: dict[str, Flags]) -> list[float | None]:
    """Of each bank, how far apart groups of tokens are, mean of all pairs, in bits; None if fewer than two have any."""
    return [
        mean([samples_apart(*pair) for pair in combinations(group_samples(table, masks).values(), 2)])
        for table in profile.tables()
    ]


def floors(profile: Profile, masks: dict[str, Flags]) -> list[float | None]:
    """Of each bank, the same between halves of the same groups: what noise gives; None if that is not known."""
    found = []
    for table in profile.tables():
        alone = [halves_apart(sample) for sample in group_samples(table, masks).values()]
        # The larger floor of each pair, as the pictures have it.
        pairs = [larger(*pair) for pair in combinations(alone, 2)]
        known = [pair for pair in pairs if pair is not None]
        found.append(mean(known) if len(known) == len(pairs) else None)
    return found


def mean_divergence(profile: Profile, masks: dict[str, Flags]) -> float | None:
    """Mean over banks; None if groups that are asked about have no tokens."""
    if len(masks) < 2 or not all(_there(profile, mask) for mask in masks.values()):
        return None
    return mean([one for one in divergences(profile, masks) if one is not None])


def mean_floor(profile: Profile, masks: dict[str, Flags]) -> float | None:
    """Mean over the banks that have a divergence of their floors; None if any is not known."""
    pairs = zip(divergences(profile, masks), floors(profile, masks), strict=True)
    found = [floor for divergence, floor in pairs if divergence is not None]
    known = [floor for floor in found if floor is not None]
    return mean(known) if len(known) == len(found) else None


def _there(profile: Profile, mask: Flags) -> bool:
    return any(len(table.rows(mask)) for table in profile.tables())


def mean(values: list[float] | Floats) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None
