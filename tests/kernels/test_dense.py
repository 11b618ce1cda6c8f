"""Layers beside experts: products with the rounded weight, however much is dequantised at once; the bits of norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.kernels import quantised_linear, stock_linear
from coterie.kernels.dense import RmsNorm, exact_rms_norm, serves
from coterie.native import LEVELS, Library, library
from coterie.quant import SCHEMES
from coterie.spec.encodings import USUAL_SCHEMES

BY_SCHEME = pytest.mark.parametrize("name", [*USUAL_SCHEMES, "int4-g32", "int8-g128"])
BY_BIAS = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
INPUTS = {
    "rows": lambda x: x[0],
    "whole": lambda x: x,
    "last position": lambda x: x[:, -1:],
    "one vector": lambda x: x[0, 0],
    "nothing": lambda x: x[:, :0],
}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


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


class Plain(nn.Module):
    """As Llama and most others."""

    def __init__(self, columns: int, dtype: torch.dtype, epsilon: float = 1e-6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(columns)
        self.weight = nn.Parameter(torch.randn(columns, generator=generator).to(dtype), requires_grad=False)
        self.variance_epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * h.to(x.dtype)


class RoundedLast(Plain):
    """As OLMo: the weight is applied before the result is rounded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * h).to(x.dtype)


class OneMore(Plain):
    """As Gemma and Qwen3-Next."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (h * (1.0 + self.weight.float())).type_as(x)


class Centred(Plain):
    """Something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


@pytest.fixture(scope="module")
def native() -> Library:
    found = library()
    if found is None:
        pytest.skip("the native library was not built")
    return found


def rows(count: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    spread = torch.logspace(-3, 3, columns)
    return (torch.randn(1, count, columns, generator=generator) * spread).to(dtype)


def found(native: Library, module: nn.Module) -> RmsNorm | None:
    return exact_rms_norm(native, module, type(module).forward)


@DTYPES
@pytest.mark.parametrize("kind", [Plain, RoundedLast, OneMore])
@pytest.mark.parametrize("columns", [8, 64, 80, 100, 128, 768, 1000, 2048, 2880, 4096, 16384])
def test_bits_are_those_of_the_class_at_every_level(
    kind: type[Plain], columns: int, dtype: torch.dtype, native: Library
) -> None:
    module = kind(columns, dtype)
    for level in LEVELS[: native.level + 1]:
        norm = found(native.lowered(level), module)
        assert norm is not None
        for count in (1, 3, 32):
            x = rows(count, columns, dtype)
            if serves(x, module.weight):
                assert torch.equal(norm(x, module.weight), module(x))


@DTYPES
def test_what_computes_something_else_is_left_alone(dtype: torch.dtype, native: Library) -> None:
    assert found(native, Centred(128, dtype)) is None


def test_epsilon_is_told_apart(native: Library) -> None:
    module = Plain(256, torch.bfloat16, epsilon=1e-3)
    norm = found(native, module)
    assert norm is not None
    x = rows(4, 256, torch.bfloat16) * 1e-3
    assert torch.equal(norm(x, module.weight), module(x))
    other = RmsNorm(native, norm.lanes, norm.form, 1e-6)
    assert not torch.equal(other(x, module.weight), module(x))


@DTYPES
def test_special_values(dtype: torch.dtype, native: Library) -> None:
    module = Plain(128, dtype)
    norm = found(native, module)
    assert norm is not None
    x = rows(6, 128, dtype)
    x[0, 0], x[0, 1, 3], x[0, 2, 5], x[0, 3] = 0, torch.inf, torch.nan, 1e38
    assert torch.allclose(norm(x, module.weight), module(x), rtol=0, atol=0, equal_nan=True)


def test_what_is_not_served(native: Library) -> None:
    weight = torch.ones(64, dtype=torch.bfloat16)
    x = torch.ones(2, 4, 64, dtype=torch.bfloat16)
    assert serves(x, weight)
    assert not serves(x.float(), weight)
    assert not serves(x.transpose(0, 1), weight)
    assert not serves(x[..., :32], weight)
    assert not serves(torch.ones(513, 64, dtype=torch.bfloat16), weight)
    assert not serves(x.clone().requires_grad_(), weight)
    assert found(native, nn.LayerNorm(64)) is None
    assert found(native, Plain(64, torch.float16)) is None
