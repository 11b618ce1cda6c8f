"""Whether clusters of router rows are the groups that a recorded profile knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from coterie.analysis.clusters import Labels
from coterie.analysis.matrices import Floats
from coterie.profiles import BankTable, Profile
from coterie.profiles.separation import SeparatedBy, group_masks
from coterie.spec import optional_package

Grouping = SeparatedBy
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """The clusters of one layer against the groups of a profile.

    Attributes:
        groups: Name → experts of which it is the dominant one.
        rand_index: Adjusted Rand index (Hubert & Arabie, "Comparing partitions", Journal of Classification 2, 1985): 1
            for equal partitions, 0 on average for unrelated ones.
        chance: [R] the same for shuffled groups.
    """

    groups: dict[str, int]
    rand_index: float
    chance: Floats

    @property
    def p_value(self) -> float:
        """How often shuffled groups agree as well, this layer by itself."""
        return float((1 + (self.chance >= self.rand_index - 1e-9).sum()) / (1 + len(self.chance)))


def dominant_groups(profile: Profile, table: BankTable, grouping: Grouping) -> tuple[Sequence[str], Labels]:
    """The modality, or domain, whose tokens select each expert the most.

    Shares of each group's own tokens are compared (N_{e,m} / N_m), so that a group with many tokens does not dominate
    by its number.

    Returns:
        Names of the groups that have tokens in this layer, and for each expert the index of its dominant one; −1 if it
        was never selected.
    """
    names: list[str] = []
    shares: list[Floats] = []
    for name, mask in group_masks(profile, grouping).items():
        rows = table.rows(mask)
        if len(rows):
            names.append(name)
            shares.append(table.activations[rows].sum(axis=0) / table.tokens[rows].sum())
    if not names:
        return (), np.full(table.shape.experts, -1, np.intp)
    found = np.stack(shares)
    return names, np.where(found.max(axis=0) > 0, found.argmax(axis=0), -1).astype(np.intp)


def match_groups(
    labels: Labels, names: Sequence[str], dominant: Labels, generator: np.random.Generator, draws: int
) -> Match | None:
    """Compares clusters with dominant groups; experts that were never selected are left out.

    Args:
        labels: [E] clusters.
        names: Of the groups.
        dominant: [E] index of each expert's group, or −1.
        generator: Of random numbers.
        draws: R.

    Returns:
        None where all experts are in one group, or in one cluster: there is nothing to agree about.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    used = dominant >= 0
    clusters, groups = labels[used], dominant[used]
    if len(np.unique(clusters)) < 2 or len(np.unique(groups)) < 2:
        return None
    metrics = optional_package("sklearn.metrics", "Comparing clusters needs", extra="analysis")
    shuffled = generator.permuted(np.tile(groups, (draws, 1)), axis=1)
    return Match(
        groups={name: int((groups == index).sum()) for index, name in enumerate(names)},
        rand_index=float(metrics.adjusted_rand_score(groups, clusters)),
        chance=rand_indices(clusters, shuffled),
    )


def rand_indices(labels: Labels, others: npt.NDArray[np.intp]) -> Floats:
    """[R] adjusted Rand index of one partition [E] with each of R others [R, E]."""

    def pairs(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        found: Floats = (counts * (counts - 1.0) / 2).sum(axis=-1)
        return found

    width = int(others.max()) + 1
    cells = (int(labels.max()) + 1) * width
    offsets = np.arange(len(others))[:, None] * cells
    table = np.bincount((labels * width + others + offsets).ravel(), minlength=len(others) * cells)
    table = table.reshape(len(others), -1, width)
    together = pairs(table.reshape(len(others), -1))
    rows, columns = pairs(table.sum(axis=2)), pairs(table.sum(axis=1))
    expected = rows * columns / (labels.size * (labels.size - 1.0) / 2)
    most = (rows + columns) / 2
    found: Floats = np.divide(together - expected, most - expected, out=np.ones_like(most), where=most > expected)
    return found
