"""Ways to round a weight [N, K]: ours, llama.cpp's formats, and what ours was compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.quant import SCHEMES
from coterie.spec.encodings import group_size

LEVELS = 15
Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to round.

    Attributes:
        name: For people.
        bits: Bits per weight for a row of this length, scales included.
        round: Weights [N, K] → the weights that a reader gets.
    """

    name: str
    bits: Callable[[int], float]
    round: Round


def symmetric(w_NK: Tensor, bits: int) -> Tensor:
    """llama.cpp's Q4_0 and Q5_0: groups of 32, the largest weight is the lowest level, round to nearest."""
    x = w_NK.reshape(-1, 32)
    half = 2 ** (bits - 1)
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    step = largest / -half
    inverse = torch.where(step == 0, 0, 1 / torch.where(step == 0, 1, step))
    codes = (x * inverse + half + 0.5).floor().clamp(0, 2 * half - 1) - half
    return (codes * step.half().float()).view_as(w_NK)


def q4_1(w_NK: Tensor) -> Tensor:
    """llama.cpp's Q4_1: groups of 32, the range in 15 steps, round to nearest; scale and minimum in half precision."""
    x = w_NK.reshape(-1, 32)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / LEVELS
    codes = ((x - low) / torch.where(step == 0, 1, step) + 0.5).floor().clamp(0, LEVELS)
    return (codes * step.half().float() + low.half().float()).view_as(w_NK)


def q8_0(w_NK: Tensor) -> Tensor:
    """llama.cpp's Q8_0: groups of 32, the largest weight is 127 or -127, round to nearest."""
    x = w_NK.reshape(-1, 32)
    step = x.abs().amax(1, keepdim=True) / 127
    codes = (x / torch.where(step == 0, 1, step)).round()
    return (codes * step.half().float()).view_as(w_NK)


def affine(w_NK: Tensor, search: Callable[[Tensor, Tensor, Tensor], Iterable[tuple[Tensor, Tensor]]]) -> Tensor:
    """Four bits with bfloat16 scale and zero: the best that a search over (scale, zero) offers, per group."""
    x = w_NK.reshape(-1, group_size(w_NK.shape[1]))
    best, error = x, torch.full((len(x), 1), torch.inf)
    for scale, zero in search(x, x.amin(1, keepdim=True), x.amax(1, keepdim=True)):
        scale, zero = scale.bfloat16().float(), zero.bfloat16().float()
        got = ((x - zero) / scale).round().clamp(-8, 7) * scale + zero
        squares = (got - x).square().sum(1, keepdim=True)
        best, error = torch.where(squares < error, got, best), torch.minimum(error, squares)
    return best.reshape(w_NK.shape)


def plain_range(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The group's range in 15 steps."""
    scale = (high - low) / LEVELS
    yield scale, low + 8 * scale


def clipped_ranges(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Sixteen shares of the range."""
    for share in torch.linspace(1, 0.7, 16).tolist():
        yield from plain_range(x, low * share, high * share)


def half_quadratic(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """HQQ: the zero moves under a norm with p = 0.7 that forgives outliers; the scale stays."""
    beta, growth, power = 10.0, 1.01, 0.7
    ((scale, zero),) = plain_range(x, low, high)
    for _ in range(20):
        yield scale, zero
        codes = ((x - zero) / scale).round().clamp(-8, 7)
        rest = x - (codes * scale + zero)
        shrunk = rest.sign() * (rest.abs() - rest.abs().clamp_min(1e-8) ** (power - 1) / beta).relu()
        zero = (x - shrunk - codes * scale).mean(1, keepdim=True)
        beta *= growth


def int8_rows(w_NK: Tensor) -> Tensor:
    """Eight bits with one bfloat16 scale for each row."""
    step = (w_NK.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    return (w_NK / step).round().clamp(-127, 127) * step


def scheme(name: str) -> Way:
    """One of ours."""
    one = SCHEMES[name]

    def through(w_NK: Tensor) -> Tensor:
        return one.dequantise(one.quantise(w_NK), w_NK.shape[1], torch.float32)

    return Way(name, lambda columns: one.nbytes(64, columns) * 8 / (64 * columns), through)


def _int4_bits(columns: int) -> float:
    return 4 + 32 / group_size(columns)


LLAMA = (
    Way("Q4_0", lambda columns: 4.5, lambda w: symmetric(w, 4)),
    Way("Q4_1", lambda columns: 5.0, q4_1),
    Way("Q5_0", lambda columns: 5.5, lambda w: symmetric(w, 5)),
    Way("Q8_0", lambda columns: 8.5, q8_0),
)

WAYS = (
    *LLAMA,
    Way("4 bits, plain range", _int4_bits, lambda w: affine(w, plain_range)),
    Way("4 bits, clip search", _int4_bits, lambda w: affine(w, clipped_ranges)),
    Way("4 bits, HQQ", _int4_bits, lambda w: affine(w, half_quadratic)),
    scheme("int4"),
    Way("8 bits, a scale for each row", lambda columns: 8 + 16 / columns, int8_rows),
    scheme("int8"),
)
