"""How many directions a router looks at, and how much two routers look at the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.analysis.matrices import Floats

_RANDOM_MATRICES = 3


def effective_rank(rows: Floats) -> float:
    """The exponential of the entropy of the singular values scaled to 1.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. Between 1 and min(E, D):
    as many directions as there would be, were all equally strong. 0 for a matrix of zeros.
    """
    values = np.linalg.svd(rows, compute_uv=False)
    total = values.sum()
    if not total > 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def random_effective_rank(experts: int, width: int, seed: int) -> float:
    """Effective rank of a matrix [E, D] of independent normal entries: the mean of a few draws, which hardly differ."""
    generator = np.random.default_rng([seed, experts, width])
    return float(
        np.mean([effective_rank(generator.standard_normal((experts, width))) for _ in range(_RANDOM_MATRICES)])
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a router reads of the hidden state: directions and their strengths.

    Attributes:
        axes: [r, D] orthonormal.
        strengths: [r] singular values of the rows less their mean.
    """

    axes: Floats
    strengths: Floats

    @classmethod
    def of(cls, rows: Floats) -> Reading:
        """Of rows [E, D]. What all rows share is left out: it raises every score alike, and chooses nothing."""
        _, strengths, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        return cls(axes=axes, strengths=strengths)

    @property
    def width(self) -> int:
        """D."""
        return int(self.axes.shape[1])


def overlap(first: Reading, second: Reading) -> float:
    """How much two routers read the same directions of the hidden state, from 0 to 1.

    Expert 5 of one layer has nothing to do with expert 5 of the next, so rows cannot be compared one by one, and a
    similarity of [E, E] matrices of experts means nothing. What layers share is the space that the rows lie in: the
    residual stream. So the D dimensions are compared, by linear centred kernel alignment with dimensions in place of
    examples (Kornblith and others, "Similarity of neural network representations revisited", 2019):
    ‖A Bᵀ‖² / (‖A Aᵀ‖ · ‖B Bᵀ‖), Frobenius norms, A and B the rows less their mean. The order of experts does not
    matter, nor does their number.
    """
    products = (first.strengths[:, None] * (first.axes @ second.axes.T) * second.strengths) ** 2
    scale = np.sqrt((first.strengths**4).sum() * (second.strengths**4).sum())
    return float(products.sum() / scale) if scale > 0 else 0.0


def random_overlaps(first: Reading, second: Reading, generator: np.random.Generator, draws: int) -> Floats:
    """[R] overlaps of the first with the second in random orientations within the D dimensions.

    Their mean is (Σ a²)(Σ b²) / (D · √(Σ a⁴ · Σ b⁴)), a and b the strengths.
    """
    ranks = (len(first.strengths), len(second.strengths))
    scale = np.sqrt((first.strengths**4).sum() * (second.strengths**4).sum())
    found = np.zeros(draws)
    for index in range(draws if scale > 0 else 0):
        block = _rotation_block(*ranks, first.width, generator)
        found[index] = ((first.strengths[:, None] * block * second.strengths) ** 2).sum() / scale
    return found


def _rotation_block(rows: int, columns: int, width: int, generator: np.random.Generator) -> Floats:
    """The upper left corner of a random orthogonal matrix [D, D], without making all of it.

    The first columns of such a matrix are G (GᵀG)^(−1/2) but for a rotation of the columns, which changes no
    distribution; of GᵀG only what the corner does not have is drawn, as one Wishart matrix.
    """
    corner = generator.standard_normal((rows, columns))
    rest = _wishart(columns, width - rows, generator)
    factor = np.linalg.cholesky(corner.T @ corner + rest)
    found: Floats = np.linalg.solve(factor, corner.T).T
    return found


def _wishart(size: int, freedom: int, generator: np.random.Generator) -> Floats:
    """Gᵀ G for a normal G [freedom, size]; by Bartlett's decomposition where there are many rows."""
    if freedom < size:
        few = generator.standard_normal((freedom, size))
        singular: Floats = few.T @ few
        return singular
    lower = np.tril(generator.standard_normal((size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(generator.chisquare(freedom - np.arange(size)))
    found: Floats = lower @ lower.T
    return found
