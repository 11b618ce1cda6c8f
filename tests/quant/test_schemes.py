"""Quantise and dequantise: errors, sizes, odd shapes, hostile values."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import QuantisationError, UsageError
from coterie.quant import SCHEMES, StoredMatrix, dequantise, lossy_scheme
from coterie.quant.affine import total
from coterie.quant.grouping import whole_and_rest
from coterie.quant.planes import pack, planes_of, unpack
from coterie.spec import SCHEME_NAMES, RecordLayout
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS, USUAL_SCHEMES, group_count, group_size
from coterie.spec.parameters import plan_record

INT4, INT8 = SCHEMES["int4"], SCHEMES["int8"]
MADE = (*USUAL_SCHEMES, "int4-g32", "int4-g128", "int3-g128", "int8-g128")
"""The usual schemes, and some with other groups: what follows holds whatever the group."""
BY_SCHEME = pytest.mark.parametrize("name", sorted(MADE))
COLUMNS = st.one_of(st.integers(1, 200), st.sampled_from([32, 64, 96, 128, 192, 320]))
SHAPES = st.tuples(st.integers(1, 9), COLUMNS)
SETTINGS = settings(max_examples=60, deadline=None)
AFFINE = {name: SCHEME_FORMATS[name].code_bits for name in MADE if SCHEME_FORMATS[name].numbers == "zero"}
"""Bits of the codes of each affine scheme."""


def matrix(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def through(name: str, weights: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    scheme = SCHEMES[name]
    return scheme.dequantise(scheme.quantise(weights), weights.shape[1], dtype)


def group_ranges(weights: torch.Tensor, group: int = 64) -> torch.Tensor:
    """The range (greatest less least) of the group of each weight."""
    ranges = torch.empty_like(weights)
    size = group_size(weights.shape[1], group)
    for start in range(0, weights.shape[1], size):
        group = weights[:, start : start + size]
        ranges[:, start : start + size] = (group.amax(1) - group.amin(1))[:, None]
    return ranges


@BY_SCHEME
@SETTINGS
@given(shape=SHAPES, seed=st.integers(0, 1000), exponent=st.integers(-25, 25))
def test_errors_are_those_of_rounding(name: str, shape: tuple[int, int], seed: int, exponent: int) -> None:
    weights = matrix(*shape, seed) * 2.0**exponent
    error = (through(name, weights) - weights).abs()
    largest = weights.abs().amax(1, keepdim=True)
    if name not in AFFINE:
        # Half a step, and what rounding the scale to bfloat16 moves the largest weight by.
        assert bool((error <= largest / 127 * 0.5 * 1.01 + largest * 2**-8).all())
    else:
        # At least as good as the plain range, rounding of scale and zero aside: by squares over a group.
        step = group_ranges(weights, SCHEME_FORMATS[name].group) / (2 ** AFFINE[name] - 1)
        assert bool((error.square().sum(1) <= (step / 2 + largest * 2**-7).square().sum(1)).all())


@BY_SCHEME
@SETTINGS
@given(shape=SHAPES, transposed=st.booleans())
def test_sizes_are_as_promised(name: str, shape: tuple[int, int], transposed: bool) -> None:
    rows, columns = shape
    parts = SCHEMES[name].quantise(matrix(*shape))
    assert sum(part.nbytes for part in parts) == SCHEMES[name].form.nbytes(*shape)
    assert [tuple(part.shape) for part in parts] == [one for _, one in SCHEMES[name].form.parts(*shape)]
    if name.startswith("int4"):
        codes = -(-columns // 2) * rows
    else:
        codes = rows * (-(-columns // 16) * 2 * AFFINE[name] if name in AFFINE else columns)
    groups = group_count(columns, SCHEME_FORMATS[name].group)
    assert SCHEMES[name].form.nbytes(*shape) == codes + groups * rows * (4 if name in AFFINE else 2)


def test_bits_per_weight() -> None:
    for name, bits in AFFINE.items():
        whole = bits + 32 / SCHEME_FORMATS[name].group
        assert SCHEMES[name].form.nbytes(768, 2048) * 8 == whole * 768 * 2048
        assert SCHEME_FORMATS[name].bits == whole
    assert INT8.form.nbytes(768, 2048) * 8 == 8.25 * 768 * 2048
    more = {"int4-g32-sym": 4.5, "int4-g128-zp-f16": 4.15625, "int4-g32-f32": 6, "int8-zero": 8.5}
    assert {name: SCHEME_FORMATS[name].bits for name in more} == more
    assert {name: SCHEME_FORMATS[name].nbytes(768, 2048) * 8 / 768 / 2048 for name in more} == more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@BY_SCHEME
def test_normal_weights_lose_little(name: str, dtype: torch.dtype) -> None:
    weights = matrix(64, 512, dtype=dtype)
    got = through(name, weights, dtype)
    assert got.dtype == dtype
    error = (got.double() - weights.double()).norm() / weights.double().norm()
    # Round to nearest in groups of 32 with one scale, as Q4_0 has it, gives 0.086 at the same 4.5 bits.
    most = {"int2": 0.33, "int3": 0.169, "int4": 0.085, "int5": 0.043, "int6": 0.022, "int8": 0.0066}
    # More weights to a scale cost about an eighth, fewer gain as much.
    most |= {"int4-g32": 0.076, "int4-g128": 0.094, "int3-g128": 0.186, "int8-g128": 0.0074}
    assert 0 < error < most[name]


@BY_SCHEME
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 2.0**-120, -(2.0**120)])
def test_constant_groups_are_exact(name: str, value: float) -> None:
    weights = torch.full((3, 128), value)
    got = through(name, weights)
    if name in AFFINE:
        assert torch.equal(got, weights)
    else:
        assert torch.allclose(got, weights, rtol=2**-8, atol=0)


@BY_SCHEME
def test_zero_rows_among_others(name: str) -> None:
    weights = matrix(4, 64)
    weights[2] = 0
    assert torch.equal(through(name, weights)[2], torch.zeros(64))


@BY_SCHEME
@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-38, 3e37])
def test_extreme_magnitudes_stay_finite_and_near(name: str, scale: float) -> None:
    weights = matrix(4, 192).clamp(-3, 3) * scale
    got = through(name, weights)
    assert bool(got.isfinite().all())
    # Next to the least numbers a scale has few bits left; an error of the weights' own size is the most.
    # The outermost weights of a group may be left out of the range of two bits.
    most = 1.1 if scale < 1e-37 else 0.6 if name == "int2" else 0.3
    assert bool(((got - weights).abs() <= weights.abs().amax() * most).all())


@BY_SCHEME
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4028e38])
def test_what_no_scale_can_hold_is_refused(name: str, value: float) -> None:
    weights = matrix(5, 96)
    weights[3, 7] = value
    with pytest.raises(QuantisationError, match="Row 3") as caught:
        SCHEMES[name].quantise(weights)
    assert caught.value.row == 3


@BY_SCHEME
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_without_the_native_library_bits_and_errors_are_the_same(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, weights = SCHEMES[name], matrix(5, 96, dtype=dtype)
    broken = weights.clone()
    broken[2, 3] = float("nan")
    parts = scheme.quantise(weights)
    decoded = [scheme.dequantise(parts, 96, wanted) for wanted in (dtype, torch.float16)]
    monkeypatch.setattr("coterie.native.library", lambda: None)
    for one, other in zip(scheme.quantise(weights), parts, strict=True):
        assert torch.equal(one, other)
    for one in decoded:
        assert torch.equal(scheme.dequantise(parts, 96, one.dtype), one)
    with pytest.raises(QuantisationError, match="Row 2"):
        scheme.quantise(broken)


@BY_SCHEME
def test_only_matrices_of_floats(name: str) -> None:
    for wrong in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(3, 4, dtype=torch.int32)):
        with pytest.raises(QuantisationError, match="Only a matrix"):
            SCHEMES[name].quantise(wrong)


@SETTINGS
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_int8_of_what_int8_gave_is_the_same(shape: tuple[int, int], seed: int) -> None:
    once = through("int8", matrix(*shape, seed))
    assert torch.equal(through("int8", once), once)


@SETTINGS
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_int4_of_what_int4_gave_moves_by_less_than_a_step(shape: tuple[int, int], seed: int) -> None:
    once = through("int4", matrix(*shape, seed))
    limit = group_ranges(once) / 15 + once.abs().amax() * 2**-7
    assert bool(((through("int4", once) - once).abs() <= limit).all())


@SETTINGS
@given(shape=SHAPES, bits=st.sampled_from(sorted(set(AFFINE.values()))), seed=st.integers(0, 1000))
def test_codes_come_back_from_their_bytes(shape: tuple[int, int], bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits, 16)
    assert torch.equal(unpack(packed, bits, shape[1]), codes)
    assert packed.shape[1] == -(-shape[1] // 16) * 2 * bits


def test_planes_hold_all_bits_of_a_code() -> None:
    assert {bits: list(planes_of(bits)) for bits in AFFINE.values()} == {
        2: [(2, 0)], 3: [(2, 0), (1, 2)], 4: [(4, 0)], 5: [(4, 0), (1, 4)], 6: [(4, 0), (2, 4)],
    }  # fmt: skip


def test_the_byte_order_is_that_of_the_format() -> None:
    assert pack(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4, 2).tolist() == [[0x21, 0x0F]]
    row = torch.tensor([[3, 0, 1, 2, 7, 4]], dtype=torch.uint8)
    assert pack(row & 3, 2, 16).tolist() == [[0b10_01_00_11, 0b00_11, 0, 0]]
    assert pack(row, 3, 16).tolist() == [[0b10_01_00_11, 0b00_11, 0, 0, 0b110000, 0]]
    assert pack(row * 8 + 5, 6, 16)[:, 8:].tolist() == [[0b01_00_00_01, 0b10_11, 0, 0]]
    packed = torch.tensor([[0x80, 0x0F]], dtype=torch.uint8)  # codes -8, 0, 7
    scales = torch.tensor([[[0.5, 1.0]]], dtype=torch.bfloat16)
    assert INT4.dequantise((packed, scales), 3, torch.float32).tolist() == [[-3.0, 1.0, 4.5]]
    codes, steps = torch.tensor([[-127, 3]], dtype=torch.int8), torch.tensor([[0.25]], dtype=torch.bfloat16)
    assert INT8.dequantise((codes, steps), 2, torch.float32).tolist() == [[-31.75, 0.75]]


@BY_SCHEME
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    weights = matrix(3000, 128)
    whole, alone = through(name, weights), through(name, weights[2500:2501])
    assert torch.equal(whole[2500:2501], alone)


@SETTINGS
@given(columns=COLUMNS, name=st.sampled_from(["int4", "int4-g32", "int4-g128"]))
def test_groups_cover_a_row(columns: int, name: str) -> None:
    form = SCHEME_FORMATS[name]
    runs = list(whole_and_rest(columns, form))
    assert [first for first, *_ in runs] == [0, *[end for _, end, *_ in runs[:-1]]]
    assert runs[-1][1] == columns
    assert sum((end - first) // size for first, end, _, size in runs) == form.group_count(columns)
    divide = [size for size in (128, 64, 32) if size <= form.group and columns % size == 0]
    assert form.group_size(columns) == next(iter(divide), form.group)


@SETTINGS
@given(count=st.integers(1, 70))
def test_sums_are_sums(count: int) -> None:
    x = torch.randint(-1000, 1000, (count, 3)).float()
    before = x.clone()
    assert torch.equal(total(x), before.sum(0))
    assert torch.equal(x, before)


@BY_SCHEME
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (64, 64), (33, 50)])
def test_a_parameter_goes_into_fields_and_comes_back(name: str, transposed: bool, shape: tuple[int, int]) -> None:
    stored = StoredMatrix(parameter="down_proj", shape=shape, scheme=SCHEMES[name], transposed=transposed)
    layout = RecordLayout.build("x", [("bias", "F32", (4,)), *stored.fields()])
    found = plan_record(layout, {"bias": (4,), "down_proj": shape}, "here")["down_proj"]
    value = matrix(*shape)
    decoded = dequantise(found, (torch.zeros(4), *stored.quantise(value)), torch.float32)
    assert decoded.shape == shape
    assert decoded.is_contiguous()
    want = through(name, value.t()).t() if transposed else through(name, value)
    assert torch.equal(decoded, want)


def test_the_schemes_by_name() -> None:
    assert lossy_scheme(NATIVE) is None
    assert {name: lossy_scheme(name) for name in SCHEMES} == SCHEMES
    with pytest.raises(UsageError, match="int8"):
        lossy_scheme("int9")


def capability_and_digest() -> tuple[str, str]:
    """The instruction set of a process, and what all schemes make of the same weights in it."""
    weights = torch.randn(300, 416, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64)
    weights = (weights * 2**20).round().float() / 2**20
    digest = hashlib.sha256(weights.numpy().tobytes())
    for name in sorted(USUAL_SCHEMES):
        for part in SCHEMES[name].quantise(weights):
            digest.update(part.view(-1).view(torch.uint8).numpy().tobytes())
    return torch.backends.cpu.get_cpu_capability(), digest.hexdigest()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the capabilities are those of x86-64")
@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_same_bytes_with_every_instruction_set(capability: str) -> None:
    imports = (
        "import hashlib, torch\nfrom coterie.quant import SCHEMES\nfrom coterie.spec.encodings import USUAL_SCHEMES\n"
    )
    script = imports + inspect.getsource(capability_and_digest)
    done = subprocess.run(
        [sys.executable, "-c", script + "\nprint(*capability_and_digest())"],
        capture_output=True, text=True, check=True, env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
    )  # fmt: skip
    used, digest = done.stdout.split()
    assert used.lower() in (capability, "default")
    assert digest == capability_and_digest()[1]


def test_names_of_schemes_are_those_of_the_registry() -> None:
    assert set(SCHEME_NAMES) == {NATIVE, *USUAL_SCHEMES}
    assert {name: scheme.form for name, scheme in SCHEMES.items()} == SCHEME_FORMATS
