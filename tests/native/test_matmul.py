"""Products with quantised matrices: no worse than with the matrix in bfloat16, and the same bits however computed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import linear

from coterie.errors import UsageError
from coterie.native import SCHEMES, Library, PackedMatrix

from .matrices import OTHERS, Matrix, activations, displaced, random_matrix, with_threads

ALL = (*SCHEMES, *OTHERS)
OTHER_SHAPES = ((3, 32), (5, 160), (9, 128), (66, 1056), (37, 2048))
SHAPES = ((1, 64), (3, 32), (4, 96), (5, 160), (9, 128), (33, 192), (70, 768), (66, 1056), (131, 2048))


def packed(native: Library, matrix: Matrix) -> PackedMatrix:
    return PackedMatrix(native, matrix.scheme, matrix.codes, matrix.scales)


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [*product(SCHEMES, SHAPES), *product(OTHERS, OTHER_SHAPES)],
    ids=str,
)
def test_error_is_no_worse_than_that_of_bfloat16_weights(native: Library, scheme: str, shape: tuple[int, int]) -> None:
    matrix = random_matrix(scheme, *shape)
    product, weights = packed(native, matrix), matrix.weights()
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 50):
        x = activations(rows, shape[1])
        exact = x.double() @ weights.T
        usual = (linear(x, weights.bfloat16()).double() - exact).norm()
        # Rounding the result itself is left where the weights happen to be exact.
        rounding = (exact.bfloat16().double() - exact).norm()
        # Where both round the weights alike, only the order of sums differs.
        assert (product(x).double() - exact).norm() <= max(1.01 * usual, 1.02 * rounding)


@pytest.mark.parametrize("scheme", ALL)
def test_bits_of_few_rows_depend_on_neither_threads_nor_each_other(native: Library, scheme: str) -> None:
    product = packed(native, random_matrix(scheme, 133, 320))
    x = activations(min(9, product.least_rows - 1), 320)
    alone = torch.cat([product(row[None]) for row in x])
    for threads in (1, 2, 3):
        with_threads(threads, lambda: torch.testing.assert_close(product(x), alone, rtol=0, atol=0))
    _, codes, scales = random_matrix(scheme, 133, 320)
    assert torch.equal(packed(native, Matrix(scheme, codes[61:], scales[61:]))(x), alone[:, 61:])


@pytest.mark.parametrize("scheme", ALL)
def test_bits_of_many_rows_depend_on_neither_threads_nor_each_other(native: Library, scheme: str) -> None:
    product, x = packed(native, random_matrix(scheme, 133, 320)), activations(70, 320)
    least = product.least_rows
    parts = torch.cat([product(part) for part in (x[:least], x[least:-16], x[-16:])])
    for threads in (1, 2, 3):
        with_threads(threads, lambda: torch.testing.assert_close(product(x), parts, rtol=0, atol=0))
    _, codes, scales = random_matrix(scheme, 133, 320)
    assert torch.equal(packed(native, Matrix(scheme, codes[61:], scales[61:]))(x), parts[:, 61:])


def test_more_rows_than_are_packed_at_a_time(native: Library) -> None:
    product, x = packed(native, random_matrix("int4", 40, 64)), activations(1100, 64)
    assert torch.equal(product(x), torch.cat([product(part) for part in x.split(300)]))


def test_tiles_and_torch_do_not_disturb_each_other(native: Library) -> None:
    """Both set the tile registers up for themselves, on the same threads."""
    product, x = packed(native, random_matrix("int4", 64, 128)), activations(64, 128)
    weight = activations(256, 128)
    ours, torchs = product(x), linear(x, weight)
    for _ in range(3):
        assert torch.equal(product(x), ours)
        assert torch.equal(linear(x, weight), torchs)


@pytest.mark.parametrize("scheme", ALL)
def test_fields_need_not_be_aligned(native: Library, scheme: str) -> None:
    matrix, x = random_matrix(scheme, 13, 192), activations(3, 192)
    moved = Matrix(scheme, displaced(matrix.codes, 1), displaced(matrix.scales, 2))
    assert torch.equal(packed(native, moved)(displaced(x, 2)), packed(native, matrix)(x))


@pytest.mark.parametrize("scheme", ALL)
def test_values_that_are_no_numbers_stay_in_their_row(native: Library, scheme: str) -> None:
    product, x = packed(native, random_matrix(scheme, 9, 128)), activations(3, 128)
    usual = product(x)
    x[1, 5] = float("nan")
    got = product(x)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], usual[[0, 2]])


@pytest.mark.parametrize("scheme", ALL)
def test_nothing_is_read_past_the_fields(native: Library, scheme: str) -> None:
    # Scales that follow are no numbers: one of them in a sum would show.
    whole = random_matrix(scheme, 12, 96)
    whole.scales[7:].view(torch.uint8).fill_(255)
    part = Matrix(scheme, whole.codes[:7], whole.scales[:7])
    assert packed(native, part)(activations(5, 96)).isfinite().all()


def test_no_rows_and_no_tokens(native: Library) -> None:
    assert packed(native, random_matrix("int4", 8, 64))(activations(0, 64)).shape == (0, 8)
    empty = Matrix("int4", torch.empty(0, 32, dtype=torch.uint8), torch.empty(0, 1, 2, dtype=torch.bfloat16))
    assert packed(native, empty)(activations(2, 64)).shape == (2, 0)


@pytest.mark.parametrize(
    ("scheme", "columns"), [("int4", 0), ("int4", 48), ("int8", 100), ("int7", 64), ("int4", 1 << 24)]
)
def test_what_is_not_served(native: Library, scheme: str, columns: int) -> None:
    assert not PackedMatrix.served(native, scheme, columns)


def test_fields_that_are_none_are_refused(native: Library) -> None:
    _, codes, scales = random_matrix("int4", 6, 128)
    for wrong in (
        (codes.to(torch.int8), scales),
        (codes, scales.float()),
        (codes[:5], scales),
        (codes[:, ::2], scales[:, :1]),
        (codes, scales.transpose(1, 2).contiguous().transpose(1, 2)),
        (codes[0], scales),
        (codes[:, :48], scales),
    ):
        with pytest.raises(UsageError):
            PackedMatrix(native, "int4", *wrong)


def test_activations_of_another_kind_are_refused(native: Library) -> None:
    product, x = packed(native, random_matrix("int8", 6, 128)), activations(2, 128)
    for wrong in (x.float(), x[:, :64], x[0], x.to("meta")):
        with pytest.raises(UsageError, match="Activations"):
            product(wrong)
    assert torch.equal(product(x.t().contiguous().t()), product(x))
