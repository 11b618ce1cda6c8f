"""Products with quantised matrices: no worse than with the matrix in bfloat16, and the same bits however computed."""

from __future__ import annotations

import pytest
from torch.nn.functional import linear

from coterie.native import Library, PackedMatrix

from .matrices import Matrix, activations, random_matrix

SCHEMES = ("int4", "int8")
SHAPES = ((1, 64), (3, 32), (4, 96), (5, 160), (9, 128), (33, 192), (70, 768), (66, 1056), (131, 2048))


def packed(native: Library, matrix: Matrix) -> PackedMatrix:
    return PackedMatrix(native, matrix.scheme, matrix.codes, matrix.scales)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_worse_than_that_of_bfloat16_weights(native: Library, scheme: str, shape: tuple[int, int]) -> None:
    matrix = random_matrix(scheme, *shape)
    product, weights = packed(native, matrix), matrix.weights()
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17):
        x = activations(rows, shape[1])
        exact = x.double() @ weights.T
        usual = (linear(x, weights.bfloat16()).double() - exact).norm()
        # Rounding the result itself is left where the weights happen to be exact.
        rounding = (exact.bfloat16().double() - exact).norm()
        assert (product(x).double() - exact).norm() <= max(usual, 1.02 * rounding)
