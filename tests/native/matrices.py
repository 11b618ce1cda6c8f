"""Quantised matrices for the tests, and what they stand for in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from coterie.quant.planes import unpack
from coterie.spec.encodings import NATIVE


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
        if self.scheme == "int8":
            return self.codes.double() * spread(self.scales, self.codes.shape[1])
        bits = int(self.scheme.removeprefix("int"))
        stored = unpack(self.codes, bits, self.codes.shape[1] * 8 // bits).double()
        scale, zero = (spread(part, stored.shape[1]) for part in self.scales.unbind(-1))
        return (stored - 2 ** (bits - 1)) * scale + zero


def spread(scales: torch.Tensor, columns: int) -> torch.Tensor:
    return scales.double().repeat_interleave(columns // scales.shape[1], dim=1)


def random_matrix(scheme: str, rows: int, columns: int, seed: int = 0) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    groups = columns // (64 if columns % 64 == 0 else 32)
    factors = torch.rand(rows, groups, generator=generator) * 0.1 + 0.01
    if scheme == NATIVE:
        return Matrix(scheme, (torch.randn(rows, columns, generator=generator) * 0.05).bfloat16(), factors)
    if scheme == "int8":
        codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
        return Matrix(scheme, codes, (factors / 16).bfloat16())
    bits = int(scheme.removeprefix("int"))
    codes = torch.randint(0, 256, (rows, columns * bits // 8), generator=generator, dtype=torch.uint8)
    zeros = torch.randn(rows, groups, generator=generator) * 0.02
    return Matrix(scheme, codes, torch.stack([factors, zeros], dim=-1).bfloat16())


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
