"""Groups of experts whose router rows point the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.analysis.matrices import Floats
from coterie.analysis.rotation import Rotations, coordinates, directions
from coterie.spec import optional_package

Labels = npt.NDArray[np.intp]

MOST_CLUSTERS = 16
"""The most clusters that are tried where their number is not given."""
LEAST_EXPERTS = 4
"""Experts without which a layer is not clustered."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clustering:
    """The rows of one layer, in clusters.

    Attributes:
        number: How many clusters.
        labels: [E] the cluster of each expert; clusters are numbered by their first expert.
        silhouette: Mean silhouette.
        chance: [R] the same for random arrangements, each with the number of clusters that suits it best (or the
            number that was given).
    """

    number: int
    labels: Labels
    silhouette: float
    chance: Floats


def cluster_rows(rows: Floats, generator: np.random.Generator, *, number: int | None = None, draws: int) -> Clustering:
    """Clusters the directions of router rows, and random arrangements of them for comparison.

    Ward's method on the rows scaled to length 1. Of the 2 to 16 clusters (half as many as experts, at most), those with
    the largest mean silhouette are taken, silhouettes of cosine distances (Rousseeuw, "Silhouettes", Journal of
    Computational and Applied Mathematics 20, 1987). Some number is always the best, and some arrangement always looks
    like clusters: what says whether there are any is the comparison with :class:`coterie.analysis.rotation.Rotations`.

    Args:
        rows: [E, D].
        generator: Of random numbers.
        number: Clusters; None chooses.
        draws: R.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    points = coordinates(rows)
    numbers = [number] if number is not None else list(range(2, max(2, min(MOST_CLUSTERS, len(rows) // 2)) + 1))
    labels, silhouette = _best(directions(points), numbers)
    rotations = Rotations(points)
    chance = np.array([_best(directions(rotations.draw(generator)), numbers)[1] for _ in range(draws)])
    order = np.unique(labels, return_index=True)[1]
    ranks = np.argsort(np.argsort(order))
    return Clustering(number=len(order), labels=ranks[labels], silhouette=silhouette, chance=chance)


def _best(unit: Floats, numbers: list[int]) -> tuple[Labels, float]:
    """The partition with the largest mean silhouette among those into so many clusters."""
    distances = np.maximum(1.0 - unit @ unit.T, 0.0)
    partitions = ward_partitions(unit, numbers)
    scores = [float(silhouettes(distances, labels).mean()) for labels in partitions]
    best = int(np.argmax(scores))
    return partitions[best], scores[best]


def ward_partitions(points: Floats, numbers: list[int]) -> list[Labels]:
    """Ward's clusters of points [E, r], for each of several numbers of clusters in ascending order.

    Returns:
        [E] labels from 0 on, for each number.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    merges = optional_package("sklearn.cluster", "Clustering router rows needs", extra="analysis").ward_tree(points)[0]
    count = len(points)
    labels = np.arange(count)
    found: dict[int, Labels] = {}
    for step in range(count):
        if count - step in numbers:
            found[count - step] = np.unique(labels, return_inverse=True)[1].astype(np.intp)
        if step < len(merges):
            labels[np.isin(labels, merges[step])] = count + step
    return [found[number] for number in numbers]


def silhouettes(distances: Floats, labels: Labels) -> Floats:
    """[E] the silhouette of each point, given all distances [E, E]; 0 for a point that is a cluster by itself."""
    members = np.equal.outer(labels, np.arange(labels.max() + 1)).astype(np.float64)
    sizes = members.sum(axis=0)
    sums = distances @ members
    points = np.arange(len(labels))
    own = sizes[labels]
    within = sums[points, labels] / np.maximum(own - 1, 1)
    means = sums / sizes
    means[points, labels] = np.inf
    nearest = means.min(axis=1)
    larger = np.maximum(within, nearest)
    found: Floats = np.divide(
        nearest - within, larger, out=np.zeros_like(larger), where=(own > 1) & (larger > 0) & np.isfinite(larger)
    )
    return found
