"""Rows like those of a router, but without any arrangement: the null that its geometry is compared with.

What is asked is whether rows form groups *beyond* what their mean and covariance say. So they are compared with rows
of the very same mean and covariance whose arrangement is random: X' = M + Q (X − M), where M repeats the mean row and
Q is an orthogonal matrix, drawn uniformly (Haar) from those that leave the vector of ones where it is. If the rows were
drawn independently from any one normal distribution, X' is distributed as X is, and the test is exact (Langsrud,
"Rotation tests", Statistics and Computing 15, 2005). Where some rows are much longer than others it finds too little,
not too much: the long ones stand out of every arrangement.
"""

from __future__ import annotations

import numpy as np

from coterie.analysis.matrices import Floats


def coordinates(rows: Floats) -> Floats:
    """Rows [E, D] in coordinates of the space that they span: [E, r], r ≤ min(E, D). Lengths and angles stay."""
    if rows.shape[1] <= rows.shape[0]:
        return rows
    # rowsᵀ = QR, so the rows of Rᵀ have the inner products that those of `rows` have.
    found: Floats = np.transpose(np.linalg.qr(rows.T, mode="r"))
    return found


def directions(rows: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def haar(size: int, generator: np.random.Generator) -> Floats:
    """A uniformly distributed orthogonal matrix (Mezzadri, "How to generate random matrices", Notices AMS 54, 2007)."""
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    found: Floats = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return found


class Rotations:
    """Random rearrangements of one router's rows."""

    def __init__(self, rows: Floats) -> None:
        """Takes rows [E, r], not scaled: it is they that may be normal."""
        count = len(rows)
        self._mean = rows.mean(axis=0)
        # Columns: an orthonormal basis of what is orthogonal to the vector of ones (Helmert's).
        steps = np.arange(1, count, dtype=np.float64)
        basis = np.triu(np.ones((count, count - 1))) / np.sqrt(steps * (steps + 1))
        basis[np.arange(1, count), np.arange(count - 1)] = -steps / np.sqrt(steps * (steps + 1))
        self._basis = basis
        self._deviations = basis.T @ rows

    def draw(self, generator: np.random.Generator) -> Floats:
        """Rows [E, r] of the same mean and covariance in a random arrangement."""
        turned = haar(len(self._deviations), generator) @ self._deviations
        drawn: Floats = self._mean + self._basis @ turned
        return drawn
