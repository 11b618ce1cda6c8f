"""Quantising and dequantising in C: the bits of the reference, at every level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.native import PART_DTYPES, Library, dequantise, quantise
from coterie.quant import SCHEMES, Scheme
from coterie.spec.encodings import SCHEME_FORMATS, USUAL_SCHEMES

from .matrices import OTHERS, random_matrix, with_threads

MADE = (*USUAL_SCHEMES, "int4-g32", "int4-g128", "int5-g128", "int8-g32", "int8-g128")
"""Schemes that weights are quantised to: the usual ones, and one or two of each kind with other groups."""
BY_SCHEME = pytest.mark.parametrize("scheme", [SCHEMES[name] for name in MADE], ids=MADE)
COLUMNS = st.one_of(st.integers(1, 300), st.sampled_from([32, 64, 96, 128, 160, 256, 320]))
KINDS = ("normal", "constant", "integers", "sparse", "bits", "one large")
CASES = settings(max_examples=60, deadline=None)


def weights_of(kind: str, shape: tuple[int, int], seed: int, exponent: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator).clamp(-3.9, 3.9)
    if kind == "constant":
        normal = normal[0, 0].expand(shape).clone()
    elif kind == "integers":
        normal = normal.round()
    elif kind == "sparse":
        normal[normal.abs() < 1] = -0.0
    elif kind == "one large":
        normal[-1, -1] = 3e4
    elif kind == "bits":
        bits = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32).view(torch.float32)
        return torch.where(bits.abs() < 3.3e38, bits, 0)
    # In two steps, for exponents that are none of a float32's own.
    return (normal * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)).clamp(-3.3e38, 3.3e38)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def quantised(library: Library, scheme: Scheme, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts = tuple(torch.empty(shape, dtype=PART_DTYPES[dtype]) for dtype, shape in scheme.form.parts(*weights.shape))
    assert quantise(library, scheme.name, weights, *parts) is None
    return parts


def assert_same_bits(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(bits_of(one), bits_of(other))


@BY_SCHEME
@CASES
@given(
    shape=st.tuples(st.integers(1, 35), COLUMNS),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    exponent=st.sampled_from([0, -8, 100, 126, -100, -126, -140, -148]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
)
@example(shape=(3, 65), kind="normal", seed=0, exponent=0, dtype=torch.bfloat16, transposed=True)
def test_the_bits_are_those_of_the_reference(
    native: Library,
    scheme: Scheme,
    shape: tuple[int, int],
    kind: str,
    seed: int,
    exponent: int,
    dtype: torch.dtype,
    transposed: bool,
) -> None:
    weights = weights_of(kind, shape, seed, exponent)
    weights = weights.clamp(-6e4, 6e4).half() if dtype == torch.float16 else weights.to(dtype)
    if transposed:
        weights = weights.t().contiguous().t()
    parts = quantised(native, scheme, weights)
    assert_same_bits(parts, scheme._quantise(weights))
    for wanted in (torch.float32, torch.bfloat16):
        out = torch.empty(shape, dtype=wanted)
        dequantise(native, scheme.name, *parts, out)
        assert_same_bits((out,), (scheme._dequantise(parts, shape[1], wanted),))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", [(3, 64), (5, 96), (2, 384), (7, 1024)], ids=str)
def test_what_checkpoints_have_comes_back_with_the_bits_of_the_reference(
    native: Library, name: str, shape: tuple[int, int]
) -> None:
    """Scales of any size and sign: subnormal ones of 16 bits, and with two signs of 0."""
    matrix = random_matrix(name, *shape)
    numbers = matrix.scales.view(torch.uint8)
    numbers[0] = torch.randint(0, 255, numbers[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    # The upper byte of each number: none is infinite, and those in the second row are tiny.
    width = SCHEME_FORMATS[name].scale_dtype
    nbytes = {"BF16": 2, "F16": 2, "F32": 4}[width]
    upper = numbers.view(shape[0], -1)[:, nbytes - 1 :: nbytes]
    upper[0] &= 0xBB
    upper[1] &= 0x83
    parts = matrix.codes, matrix.scales
    for wanted in (torch.float32, torch.bfloat16):
        out = torch.empty(shape, dtype=wanted)
        dequantise(native, name, *parts, out)
        reference = SCHEMES[name]._dequantise(parts, shape[1], wanted)
        assert reference.isfinite().all()
        assert_same_bits((out,), (reference,))


@BY_SCHEME
def test_threads_change_nothing(native: Library, scheme: Scheme) -> None:
    weights = weights_of("normal", (133, 200), 0, 0)
    once = quantised(native, scheme, weights)
    for threads in (1, 2, 3):
        with_threads(threads, lambda: assert_same_bits(quantised(native, scheme, weights), once))


@BY_SCHEME
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 3.4028e38])
def test_the_first_row_that_cannot_be_stored_is_told(native: Library, scheme: Scheme, value: float) -> None:
    weights = weights_of("normal", (90, 70), 0, 0)
    weights[[89, 37, 60], [3, 69, 0]] = value
    parts = scheme._quantise(weights_of("normal", (90, 70), 0, 0))

    def check() -> None:
        assert quantise(native, scheme.name, weights, *parts) == 37

    for threads in (1, 3):
        with_threads(threads, check)
    assert quantise(native, scheme.name, weights.bfloat16(), *parts) == 37
