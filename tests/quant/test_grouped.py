"""Codes and numbers of quantised checkpoints: kept bit for bit, and worth what their formats say."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import UsageError
from coterie.quant import GROUPED_SCHEMES
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec.encodings import SCHEME_FORMATS

KEPT = sorted(name for name in GROUPED_SCHEMES if not SCHEME_FORMATS[name].made_here)


def numbers_of(name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Stored codes, scales, and zeros or zero points."""
    form, generator = SCHEME_FORMATS[name], torch.Generator().manual_seed(3)
    groups, dtype = form.group_count(columns), TORCH_DTYPES[form.scale_dtype]
    if form.code_bits == 8:
        codes = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    else:
        codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(rows, groups, generator=generator) * 0.1 + 0.01).to(dtype)
    if form.numbers == "sym":
        return codes, scales, None
    if form.numbers == "zero":
        return codes, scales, torch.randn(rows, groups, generator=generator).to(dtype)
    return codes, scales, torch.randint(0, 16, (rows, groups), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("columns", [64, 96, 384])
def test_weights_are_those_of_the_formula(name: str, columns: int) -> None:
    form, scheme = SCHEME_FORMATS[name], GROUPED_SCHEMES[name]
    codes, scales, others = numbers_of(name, 5, columns)
    parts = scheme.assemble(codes, scales, others)
    wanted = form.parts(5, columns)
    assert [(part.dtype, tuple(part.shape)) for part in parts] == [(TORCH_DTYPES[d], s) for d, s in wanted]
    size = form.group_size(columns)
    scale = scales.float().repeat_interleave(size, 1)
    zero_code = 0 if form.code_bits == 8 else 8
    if form.numbers == "zp":
        assert others is not None
        weights = (codes.float() - others.float().repeat_interleave(size, 1)) * scale
    else:
        weights = (codes.float() - zero_code) * scale
        weights = weights if others is None else weights + others.float().repeat_interleave(size, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(scheme.dequantise(parts, columns, dtype), weights.to(dtype))
    again = scheme.assemble_packed(parts[0], columns, scales, others)
    assert all(torch.equal(one, other) for one, other in zip(again, parts, strict=True))


def test_zero_points_lie_behind_the_scales_of_their_row() -> None:
    scheme = GROUPED_SCHEMES["int4-g32-zp-f16"]
    points = torch.tensor([[1, 2, 3], [4, 5, 15]], dtype=torch.uint8)
    scales = torch.full((2, 3), 1.5, dtype=torch.float16)
    _, stored = scheme.assemble(torch.zeros(2, 96, dtype=torch.uint8), scales, points)
    row = [0x00, 0x3E] * 3
    assert stored.tolist() == [[*row, 0x21, 0x03], [*row, 0x54, 0x0F]]


def test_what_a_scheme_does_not_have_is_refused() -> None:
    codes, scales, points = numbers_of("int4-zp", 2, 128)
    assert points is not None
    for name, given in {
        "int4-zp": (codes, scales, None),
        "int4-sym": (codes, scales, points),
        "int4-f16": (codes, scales.half(), points),
        "int4-sym-f16": (codes, scales, None),
        "int4-g32-sym": (codes, scales, None),
        "int8-f16": (codes, scales.half(), None),
    }.items():
        with pytest.raises(UsageError, match=name):
            GROUPED_SCHEMES[name].assemble(*given)
    with pytest.raises(UsageError, match="0 to 15, not 16"):
        GROUPED_SCHEMES["int4-zp"].assemble(codes, scales, points % 1 + 16)
    with pytest.raises(UsageError, match="0 to 15, not 40"):
        GROUPED_SCHEMES["int4-zp"].assemble(codes % 1 + 40, scales, points)
    with pytest.raises(UsageError, match="no codes of int4-zp in rows of 128"):
        GROUPED_SCHEMES["int4-zp"].assemble_packed(codes, 128, scales, points)


@pytest.mark.parametrize("name", ["int4-sym", "int4-g32-zp-f16", "int8-zero"])
def test_nothing_is_quantised_to_what_checkpoints_have(name: str) -> None:
    with pytest.raises(UsageError, match="Nothing is quantised to"):
        GROUPED_SCHEMES[name].quantise(torch.randn(2, 64))
