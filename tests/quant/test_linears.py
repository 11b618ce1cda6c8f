"""Which weights of linear layers a scheme takes, and how their tensors are called."""

from __future__ import annotations

import pytest

from coterie.quant import SCHEMES, linear_names, stored_linear
from coterie.spec.encodings import USUAL_SCHEMES

BY_SCHEME = pytest.mark.parametrize("scheme", [*USUAL_SCHEMES, "int4-g128", "int4-g32-sym-f16"])


@BY_SCHEME
@pytest.mark.parametrize(
    ("rows", "columns", "served"),
    [(96, 64, True), (96, 32, True), (96, 72, True), (96, 48, False), (96, 16, False), (7, 64, True), (7, 70, False)],
)
def test_rows_have_a_whole_group_and_codes_an_even_number_of_bytes(
    scheme: str, rows: int, columns: int, served: bool
) -> None:
    assert (stored_linear("layer.weight", rows, columns, SCHEMES[scheme]) is not None) == served


def test_every_scheme_serves_the_same_weights() -> None:
    for rows in range(1, 9):
        for columns in range(60, 140):
            served = {stored_linear("w", rows, columns, scheme) is not None for scheme in SCHEMES.values()}
            assert len(served) == 1
            for scheme in SCHEMES.values():
                matrix = stored_linear("w", rows, columns, scheme)
                if matrix is not None:
                    _, dtype, shape = matrix.fields()[0]
                    assert dtype in ("U8", "I8")
                    assert shape[0] * shape[1] % 2 == 0


@BY_SCHEME
def test_names_are_found_where_both_tensors_are(scheme: str) -> None:
    matrix = stored_linear("a.weight", 64, 64, SCHEMES[scheme])
    assert matrix is not None
    codes, scales = (name for name, _, _ in matrix.fields())
    found = linear_names([codes, scales, "b.weight", f"c.weight_{scheme}"], SCHEMES[scheme])
    assert found == {"a.weight": (codes, scales)}
    other = SCHEMES["int8" if scheme == "int4" else "int4"]
    assert linear_names([codes, scales], other) == {}
