"""Matrices of four-bit codes, whose values three file formats hold exactly.

A weight is ``code × scale`` with a code from −8 to 7 and one scale for 64 neighbours of a row. A scale has five
significant bits, so that it is a float16 and a bfloat16, and ``code × scale`` is a bfloat16, too:

- scheme ``int4`` of a store: groups of 64 with a bfloat16 scale and a zero of 0; byte j holds columns 2j and 2j + 1;
- ``Q4_0`` of a GGUF: blocks of 32 with a float16 scale; byte j of a block holds columns j and j + 16;
- bfloat16: the products themselves, without rounding.

From one format to the other only halves of bytes move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

GROUP = 64
"""Weights of a row that share a scale."""

CODE_SPREAD = 3.2
"""Standard deviation of drawn codes: eight codes are then 2.5 standard deviations, as a block's largest weight is."""

BLOCK = 32
"""Weights of a Q4_0 block."""

BLOCK_BYTES = 2 + BLOCK // 2
"""Bytes of one."""

_ZERO = 8
_SIGNIFICANT_BITS = 5

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CodedMatrix:
    """A matrix [rows, columns].

    Attributes:
        packed: Codes plus 8, uint8 [rows, columns / 2], the lower half of a byte first.
        scales: float32 [rows, columns / 64] of five significant bits.
    """

    packed: Bytes
    scales: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, halves = self.packed.shape
        return rows, 2 * halves

    def rows(self, which: slice | npt.NDArray[np.int64]) -> CodedMatrix:
        """Some of the rows."""
        return CodedMatrix(self.packed[which], self.scales[which])

    def codes(self) -> npt.NDArray[np.int8]:
        """int8 [rows, columns], −8 to 7."""
        codes = np.empty(self.shape, dtype=np.int8)
        codes[:, 0::2] = self.packed & 15
        codes[:, 1::2] = self.packed >> 4
        codes -= _ZERO
        return codes

    def values(self) -> Floats:
        """float32 [rows, columns]."""
        codes = self.codes().astype(np.float32)
        grouped = codes.reshape(len(codes), -1, GROUP)
        grouped *= self.scales[..., None]
        return codes

    def bf16(self) -> npt.NDArray[np.uint16]:
        """The bits of the values as bfloat16, exactly."""
        return bf16_bits(self.values())

    def int4(self) -> tuple[Bytes, npt.NDArray[np.uint16]]:
        """Codes, uint8 [rows, columns / 2], and the bits of scales and zeros, uint16 [rows, groups, 2]."""
        pairs = np.zeros((*self.scales.shape, 2), dtype=np.uint16)
        pairs[..., 0] = bf16_bits(self.scales)
        return self.packed, pairs

    def q4_0(self) -> Bytes:
        """uint8 [rows, columns / 32, 18]."""
        rows, columns = self.shape
        blocks = np.empty((rows, columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
        halves = self.scales.astype(np.float16).repeat(GROUP // BLOCK, axis=1)
        blocks[..., :2] = halves[..., None].view(np.uint8)
        ours = self.packed.reshape(rows, -1, 2, BLOCK // 4)
        first, second = ours[:, :, 0], ours[:, :, 1]
        blocks[..., 2::2] = (first & 15) | (second << 4)
        blocks[..., 3::2] = (first >> 4) | (second & 0xF0)
        return blocks


def draw(rng: np.random.Generator, rows: int, columns: int, spread: float) -> CodedMatrix:
    """A matrix with normally distributed codes.

    Args:
        rng: Where randomness comes from; one byte is used per weight.
        rows: Outputs.
        columns: Inputs, a multiple of 64.
        spread: Standard deviation of the weights.
    """
    indices = rng.bit_generator.random_raw(-(-rows * columns // 8)).view(np.uint16)[: rows * columns // 2]
    packed = _TABLE.take(indices).reshape(rows, columns // 2)
    mantissa, exponent = _five_bits(spread / CODE_SPREAD)
    steps = rng.bit_generator.random_raw(-(-rows * columns // GROUP // 8)).view(np.uint8)[: rows * columns // GROUP]
    numerators = np.minimum(mantissa - 1.0 + steps % 3, 2**_SIGNIFICANT_BITS)
    return CodedMatrix(packed, np.ldexp(numerators, exponent).astype(np.float32).reshape(rows, -1))


def encode(values: Floats, step: float) -> CodedMatrix:
    """The nearest matrix with one scale for all of it.

    Args:
        values: float32 [rows, columns].
        step: The scale; it is rounded to five significant bits.
    """
    scale = np.float32(math.ldexp(*_five_bits(step)))
    stored = np.rint(values * (1 / scale)).clip(-_ZERO, _ZERO - 1).astype(np.int8).view(np.uint8) + np.uint8(_ZERO)
    rows, columns = values.shape
    return CodedMatrix(
        stored[:, 0::2] | (stored[:, 1::2] << 4), np.full((rows, columns // GROUP), scale, dtype=np.float32)
    )


def bf16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """The bits of float32 values that are bfloat16, too."""
    bits: npt.NDArray[np.uint16] = np.ascontiguousarray(values).view(np.uint16)[..., 1::2]
    return bits


def nearest_bf16(values: Floats) -> Floats:
    """float32 values cut to bfloat16."""
    return (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _five_bits(value: float) -> tuple[int, int]:
    """``(mantissa, exponent)`` with a mantissa from 16 to 32 whose product with 2**exponent is next to ``value``."""
    fraction, exponent = math.frexp(value)
    return round(math.ldexp(fraction, _SIGNIFICANT_BITS)), exponent - _SIGNIFICANT_BITS


def _table() -> Bytes:
    """Two random bytes → two codes, packed: quantiles of the normal distribution."""
    normal = NormalDist(sigma=CODE_SPREAD)
    codes = [min(max(round(normal.inv_cdf((i + 0.5) / 256)), -_ZERO), _ZERO - 1) + _ZERO for i in range(256)]
    row = np.array(codes, dtype=np.uint8)
    return (row[None, :] | (row[:, None] << 4)).reshape(-1)


_TABLE = _table()
