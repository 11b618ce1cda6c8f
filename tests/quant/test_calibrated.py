"""Codes chosen for what a matrix is multiplied with, against plain float64 on small matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from coterie.errors import QuantisationError, UnsupportedError
from coterie.quant import SCHEMES, Scheme
from coterie.quant.calibrated import choose_codes, shrunk
from coterie.quant.calibrated.descent import descend
from coterie.quant.calibrated.errors import output_errors
from coterie.quant.calibrated.gptq import gptq
from coterie.quant.calibrated.refit import refit
from coterie.quant.codes import Codes
from coterie.spec.encodings import USUAL_SCHEMES

MADE = (*USUAL_SCHEMES, "int4-g32", "int4-g128", "int8-g128")
SHAPES = [(12, 64), (7, 96), (5, 100), (9, 33), (4, 128)]
"""Rows and columns: groups of 64, of 32, shorter ones at the end, and several."""


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.1


def moments(columns: int, rows: int = 300) -> torch.Tensor:
    """Of inputs that are correlated, as those of experts are."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = x * torch.logspace(0, -1, columns)
    return x.t() @ x / rows


def error(weights: torch.Tensor, rebuilt: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(Δ H Δᵀ), by the definition."""
    off = (rebuilt.double() - weights.double()).numpy()
    return float((off @ hessian.double().numpy() @ off.T).trace())


def scheme(name: str) -> Scheme:
    return SCHEMES[name]


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_codes_are_packed_as_they_were(name: str, rows: int, columns: int) -> None:
    parts = scheme(name).quantise(matrix(rows, columns))
    codes = scheme(name).unpacked(parts, columns)
    assert all(torch.equal(a, b) for a, b in zip(scheme(name).packed(codes), parts, strict=True))
    # The definition of the scheme, computed here and there.
    assert torch.equal(codes.weights_KN().t(), scheme(name).dequantise(parts, columns, torch.float32))


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_errors_are_what_they_say_and_never_worse_than_rounding(name: str, rows: int, columns: int) -> None:
    weights, hessian = matrix(rows, columns), moments(columns)
    chosen = choose_codes(scheme(name), weights, hessian)
    rebuilt = scheme(name).dequantise(chosen.parts, columns, torch.float32)
    nearest = scheme(name).dequantise(scheme(name).quantise(weights), columns, torch.float32)
    assert chosen.error.output == pytest.approx(error(weights, rebuilt, hessian), rel=1e-3)
    assert chosen.error.nearest_output == pytest.approx(error(weights, nearest, hessian), rel=1e-3)
    assert chosen.error.output_scale == pytest.approx(error(weights, torch.zeros_like(weights), hessian), rel=1e-4)
    assert chosen.error.weight == pytest.approx(float((rebuilt - weights).double().square().sum()), rel=1e-4)
    for row in range(rows):
        mine = error(weights[row : row + 1], rebuilt[row : row + 1], hessian)
        plain = error(weights[row : row + 1], nearest[row : row + 1], hessian)
        assert mine <= plain * (1 + 1e-4)
    # Correlated inputs are what calibration is for.
    assert chosen.error.output < 0.6 * chosen.error.nearest_output
    wanted = scheme(name).form.parts(rows, columns)
    assert [tuple(part.shape) for part in chosen.parts] == [shape for _, shape in wanted]


def test_gptq_is_what_the_paper_says() -> None:
    """Column by column: the rest of each row is moved by the inverse of what is left of the Hessian."""
    weights, hessian = matrix(3, 40), moments(40)
    codes = gptq(scheme("int4"), weights.t().contiguous(), hessian)
    rest, left = weights.double().clone(), hessian.double().clone()
    for column in range(40):
        inverse = torch.linalg.inv(left)
        scale, zero = codes.scales_GN[0].double(), codes.zeros_GN[0].double()
        code = ((rest[:, 0] - zero) / scale).round().clamp(-8, 7)
        same = codes.codes_KN[column].double() == code
        # A weight just between two codes may be rounded either way.
        between = ((rest[:, 0] - zero) / scale).frac().abs().sub(0.5).abs() < 1e-3
        assert bool((same | between).all())
        code = codes.codes_KN[column].double()
        off = (rest[:, 0] - (code * scale + zero)) / inverse[0, 0]
        rest = (rest - off[:, None] * inverse[0])[:, 1:]
        left = left[1:, 1:]


def start(name: str, weights: torch.Tensor) -> Codes:
    return scheme(name).unpacked(scheme(name).quantise(weights), weights.shape[1])


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_refitted_scales_are_the_least_squares(name: str, rows: int, columns: int) -> None:
    weights, hessian, grid = matrix(rows, columns), moments(columns), scheme(name).grid
    assert grid is not None
    before = start(name, weights)
    fitted = refit(before, hessian @ weights.t(), hessian, grid)
    assert torch.equal(fitted.codes_KN, before.codes_KN)
    assert torch.equal(fitted.scales_GN, fitted.scales_GN.bfloat16().float())
    # The dense solution: each group's codes, and ones, are the regressors.
    size = scheme(name).form.group_size(columns)
    groups = [range(at, min(at + size, columns)) for at in range(0, columns, size)]
    for row in range(rows):
        design = torch.zeros(columns, len(groups) * (2 if grid.has_zeros else 1), dtype=torch.float64)
        for number, group in enumerate(groups):
            design[list(group), number] = before.codes_KN[list(group), row].double()
            if grid.has_zeros:
                design[list(group), len(groups) + number] = 1
        root = torch.linalg.cholesky(hessian.double() + 1e-9 * torch.eye(columns, dtype=torch.float64)).mT
        best = torch.linalg.lstsq(root @ design, (root @ weights[row].double())[:, None], driver="gelsd").solution
        least = error(weights[row : row + 1], (design @ best).t(), hessian)
        mine = error(weights[row : row + 1], fitted.weights_KN().t()[row : row + 1], hessian)
        was = error(weights[row : row + 1], before.weights_KN().t()[row : row + 1], hessian)
        assert least <= mine * (1 + 1e-6)
        # bfloat16 has eight bits. Beside four-bit codes, what rounding of scales costs is little.
        if grid.has_zeros:
            assert mine <= least + 0.3 * was
        else:
            assert torch.allclose(fitted.scales_GN[:, row], best[:, 0].float(), rtol=2**-7)


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_after_descent_no_single_code_is_better(name: str, rows: int, columns: int) -> None:
    weights, hessian, grid = matrix(rows, columns), moments(columns), scheme(name).grid
    assert grid is not None
    codes, errors = start(name, weights), []
    for _ in range(12):
        errors.append(output_errors(codes.weights_KN() - weights.t(), hessian))
        codes, said = descend(codes, weights.t().contiguous(), hessian, grid)
        assert torch.allclose(said, output_errors(codes.weights_KN() - weights.t(), hessian), rtol=1e-3)
    assert all(bool((b <= a * (1 + 1e-5)).all()) for a, b in itertools.pairwise(errors))
    if name != "int4":  # with few codes it settles; with many, float32 goes on finding some
        return
    settled = output_errors(codes.weights_KN() - weights.t(), hessian)
    for column, step in itertools.product(range(0, columns, 7), (-1, 1)):
        other = codes.codes_KN.clone()
        other[column] = (other[column] + step).clamp(grid.lowest, grid.highest)
        moved = Codes(codes_KN=other, scales_GN=codes.scales_GN, zeros_GN=codes.zeros_GN, group=codes.group)
        assert bool((output_errors(moved.weights_KN() - weights.t(), hessian) >= settled * (1 - 1e-4)).all())


def test_odd_hessians_and_weights() -> None:
    weights = matrix(6, 64)
    unknown = choose_codes(scheme("int4"), weights, torch.zeros(64, 64))
    assert unknown.error.output <= unknown.error.nearest_output
    hessian = moments(64)
    hessian[5] = hessian[:, 5] = 0  # an input that was always 0
    chosen = choose_codes(scheme("int4"), weights, hessian)
    assert chosen.error.output < chosen.error.nearest_output
    weights[0] = 0
    weights[1] = 3.5
    same = choose_codes(scheme("int4"), weights, hessian)
    assert torch.equal(scheme("int4").dequantise(same.parts, 64, torch.float32)[:2], weights[:2])
    with pytest.raises(QuantisationError, match="infinite or not a number"):
        choose_codes(scheme("int4"), weights, torch.full((64, 64), torch.nan))
    weights[2, 3] = torch.inf
    with pytest.raises(QuantisationError, match="Row 2"):
        choose_codes(scheme("int4"), weights, hessian)


def test_a_scheme_without_a_grid_is_refused() -> None:
    for name in ("int8-f16", "int4-zp"):
        with pytest.raises(UnsupportedError, match="calibration"):
            choose_codes(scheme(name), matrix(2, 64), moments(64))
        with pytest.raises(UnsupportedError):
            scheme(name).packed(start("int8", matrix(2, 64)))


def test_few_rows_count_little_beside_the_layer() -> None:
    own, mean = torch.diag(torch.tensor([10.0, 0.0])), torch.eye(2)
    assert torch.equal(shrunk(own, mean), torch.diag(torch.tensor([210.0, 200.0])))
