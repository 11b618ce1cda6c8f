"""Linear layers with weights in a scheme: the product with the rounded weight, however much is dequantised at once."""

from __future__ import annotations

import pytest
import torch

from coterie.kernels import quantised_linear, stock_linear
from coterie.quant import SCHEMES

BY_SCHEME = pytest.mark.parametrize("name", sorted(SCHEMES))
BY_BIAS = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
INPUTS = {
    "rows": lambda x: x[0],
    "whole": lambda x: x,
    "last position": lambda x: x[:, -1:],
    "one vector": lambda x: x[0, 0],
    "nothing": lambda x: x[:, :0],
}


@BY_SCHEME
@BY_BIAS
@pytest.mark.parametrize("form", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_block_has_the_bits_of_stock_with_the_rounded_weight(
    name: str, bias: bool, form: str, dtype: torch.dtype
) -> None:
    scheme = SCHEMES[name]
    codes, scales = scheme.quantise(torch.randn(48, 96, dtype=dtype))
    added = torch.randn(48, dtype=dtype) if bias else None
    x = INPUTS[form](torch.randn(3, 5, 96, dtype=dtype))
    want = stock_linear(x, scheme.dequantise((codes, scales), 96, dtype), added)
    got = quantised_linear(x, codes, scales, scheme, added)
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert torch.equal(got, want)


@BY_SCHEME
@BY_BIAS
@pytest.mark.parametrize("columns", [64, 72, 96])
@pytest.mark.parametrize("at_once", [1, 64 * 7, 64 * 40])
def test_blocks_make_up_the_whole(name: str, bias: bool, columns: int, at_once: int) -> None:
    scheme = SCHEMES[name]
    codes, scales = scheme.quantise(torch.randn(50, columns))
    added = torch.randn(50) if bias else None
    x = torch.randn(2, 3, columns)
    want = quantised_linear(x, codes, scales, scheme, added)
    got = quantised_linear(x, codes, scales, scheme, added, values_at_once=at_once)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_no_more_than_a_block_is_dequantised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = SCHEMES["int4"]
    parts = scheme.quantise(torch.randn(256, 64))
    rows: list[int] = []
    real = type(scheme).dequantise

    def watched(self, parts, columns, dtype):
        rows.append(len(parts[0]))
        return real(self, parts, columns, dtype)

    monkeypatch.setattr(type(scheme), "dequantise", watched)
    quantised_linear(torch.randn(1, 64), *parts, scheme, values_at_once=64 * 100)
    assert rows == [100, 100, 56]
