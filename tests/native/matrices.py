"""Quantised matrices for the tests, and what they stand for in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from coterie.native import PART_DTYPES
from coterie.quant.planes import unpack
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS

OTHERS = (
    "int4-g128",
    "int4-g32",
    "int3-g128",
    "int6-g32",
    "int4-g32-sym",
    "int4-sym-f16",
    "int4-g128-sym-f32",
    "int4-g32-zp-f16",
    "int4-zp",
    "int4-g128-zp-f32",
    "int4-g128-f16",
    "int4-f32",
    "int8-g128",
    "int8-g32-f16",
    "int8-g128-f32",
    "int8-zero",
    "int8-g128-zero-f16",
    "int8-g32-zero-f32",
)
"""Schemes with other groups, numbers and dtypes of scales: each of each, and those together that C reads apart."""


class Matrix(NamedTuple):
    """A quantised matrix [N, K]."""

    scheme: str
    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def fields(self) -> tuple[torch.Tensor, ...]:
        """Codes and scales; of what is native the weights."""
        return (self.codes,) if self.scheme == NATIVE else (self.codes, self.scales)

    def weights(self) -> torch.Tensor:
        """float64 [N, K], from the definition of the scheme."""
        if self.scheme == NATIVE:
            return self.codes.double()
        form = SCHEME_FORMATS[self.scheme]
        columns = form.values(self.codes.shape[1])
        stored = self.codes if form.code_bits == 8 else unpack(self.codes, form.code_bits, columns)
        stored, point = stored.double(), 0 if form.code_bits == 8 else 2 ** (form.code_bits - 1)
        if form.numbers == "zero":
            scale, zero = (spread(part, columns) for part in self.scales.unbind(-1))
            return (stored - point) * scale + zero
        if form.numbers == "sym":
            return (stored - point) * spread(self.scales, columns)
        groups, dtype = form.group_count(columns), PART_DTYPES[form.scale_dtype]
        nbytes = groups * dtype.itemsize
        scale = spread(self.scales[:, :nbytes].flatten().clone().view(dtype).view(-1, groups), columns)
        halves = self.scales[:, nbytes:]
        points = torch.stack([halves & 15, halves >> 4], dim=-1).flatten(1)[:, :groups]
        return (stored - spread(points, columns)) * scale


def spread(scales: torch.Tensor, columns: int) -> torch.Tensor:
    return scales.double().repeat_interleave(columns // scales.shape[1], dim=1)


def random_matrix(scheme: str, rows: int, columns: int, seed: int = 0) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    form = SCHEME_FORMATS["int4" if scheme == NATIVE else scheme]
    groups, dtype = form.group_count(columns), PART_DTYPES[form.scale_dtype]
    factors = torch.rand(rows, groups, generator=generator) * 0.1 + 0.01
    if scheme == NATIVE:
        return Matrix(scheme, (torch.randn(rows, columns, generator=generator) * 0.05).bfloat16(), factors)
    if form.code_bits == 8:
        codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
        factors /= 16
    else:
        packed = rows, columns * form.code_bits // 8
        codes = torch.randint(0, 256, packed, generator=generator, dtype=torch.uint8)
    zeros = torch.randn(rows, groups, generator=generator) * 0.02
    if form.numbers == "sym":
        return Matrix(scheme, codes, factors.to(dtype))
    if form.numbers == "zero":
        return Matrix(scheme, codes, torch.stack([factors, zeros], dim=-1).to(dtype))
    scales = factors.to(dtype).view(torch.uint8)
    points = torch.randint(0, 256, (rows, -(-groups // 4) * 2), generator=generator, dtype=torch.uint8)
    return Matrix(scheme, codes, torch.cat([scales, points], dim=1))


def activations(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def displaced(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """A copy whose memory starts ``nbytes`` after an aligned address."""
    memory = torch.empty(tensor.nbytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + nbytes
    copy = memory[start : start + tensor.nbytes].numpy()
    out = torch.frombuffer(copy, dtype=tensor.dtype).view(tensor.shape)
    return out.copy_(tensor)


def with_threads(threads: int, run: Callable[[], None]) -> None:
    """Runs with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run()
    finally:
        torch.set_num_threads(before)
