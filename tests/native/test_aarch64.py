"""The library as it is built for 64-bit ARM, emulated: what the other tests say of every level, and the same bits.

Nothing here is timed: an emulator says nothing about speed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.kernels.dense import RmsNorm
from coterie.native import Library, PackedMatrix, dequantise, library, rotate, route, token_attention
from coterie.native.library import levels_of
from coterie.quant import SCHEMES
from coterie.spec.encodings import USUAL_SCHEMES

from . import emulation, test_conversion, test_experts, test_layer, test_matmul, test_rows, test_token_experts
from .emulation import EmulatedFunctions, Programs
from .matrices import OTHERS, activations, random_matrix

PROCESSORS = {"default": "cortex-a72", "neon": "cortex-a72", "dotprod": "cortex-a76"}
"""For each level a processor that has no higher one."""


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Programs:
    reason = emulation.missing()
    if reason:
        (pytest.fail if os.environ.get(emulation.REQUIRED) else pytest.skip)(reason)
    return emulation.compiled(request.config.cache.mkdir("coterie-aarch64"))


@pytest.fixture(scope="module", params=PROCESSORS)
def native(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Library]:
    """Takes the place of the library of this machine in the tests below."""
    functions: Any = EmulatedFunctions(programs, PROCESSORS[request.param])
    yield Library(functions, levels_of("aarch64").index(request.param), threaded=False)
    functions.close()


@pytest.fixture(scope="module")
def twin() -> Library:
    """Portable C on this machine."""
    found = library()
    if found is None:
        pytest.skip("the library was not built")
    return found.lowered("default")


def test_levels_are_those_of_the_processor(programs: Programs) -> None:
    names = levels_of("arm64")
    for processor, highest in (("cortex-a53", "neon"), ("cortex-a72", "neon"), ("cortex-a76", "dotprod")):
        functions = EmulatedFunctions(programs, processor)
        found = [functions.coterie_level_name(functions.coterie_level(level)).decode() for level in range(9)]
        assert found[: len(names)] == [min(name, highest, key=names.index) for name in names]
        assert set(found[len(names) :]) == {highest}
        assert functions.coterie_level_name(len(names)) is None
        functions.close()


def test_what_is_cleared_ends_where_it_should_when_a_page_is_missing(programs: Programs) -> None:
    """Wherever within it the next page begins: the C library's own way does not bear that under emulation."""
    functions: Any = EmulatedFunctions(programs, "cortex-a72")
    ids, weights, experts = torch.arange(70) % 6, torch.ones(70), torch.zeros(6, dtype=torch.int64)
    others = [torch.zeros(70, dtype=torch.int32) for _ in range(6)]
    offsets, row_token, row_weight, token_rows, counts, done = (one.data_ptr() for one in others)
    for before in range(8, 280, 24):
        memory = torch.full((4 * mmap.PAGESIZE,), 7, dtype=torch.uint8)
        begin = -memory.data_ptr() % mmap.PAGESIZE + mmap.PAGESIZE - before
        used = functions.coterie_route(
            ids.data_ptr(), weights.data_ptr(), 0, 70, 1, 6, experts.data_ptr(), offsets, row_token, row_weight,
            token_rows, counts, memory.data_ptr() + begin, done,
        )  # fmt: skip
        assert used == 6
        cleared, rest = memory[begin : begin + 280], (memory[:begin], memory[begin + 280 :])
        assert cleared.view(torch.int32).tolist() == [1] * 70  # and then counted in
        assert all((part == 7).all() for part in rest)
    functions.close()


def test_memory_below_the_stack_of_the_emulator_is_ours(programs: Programs, twin: Library) -> None:
    """A stack without a limit grows down to what is touched, and nobody would be asked for the page."""
    functions: Any = EmulatedFunctions(programs, "cortex-a72")
    maps = Path(f"/proc/{functions._process.pid}/maps").read_text()
    stack = next(int(line.partition("-")[0], 16) for line in maps.splitlines() if line.endswith("[stack]"))
    heads = activations(1, 64).clone()
    there = memory_at(stack - (64 << 20), heads.nbytes).view(torch.bfloat16).view(1, 64)
    there.copy_(heads)
    for at, one in ((Library(functions, 0, threaded=False), there), (twin, heads)):
        rotate(at, one, activations(1, 64, seed=6), activations(1, 64, seed=7))
    functions.close()
    assert torch.equal(there, heads)


def memory_at(address: int, nbytes: int) -> torch.Tensor:
    """New memory of this process at an address where nothing is; it stays."""
    map_memory = ctypes.CDLL(None).mmap
    map_memory.restype = ctypes.c_void_p
    map_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    found = map_memory(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert found == address
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)


@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 160), (35, 544)], ids=str)
def test_products_are_as_exact_as_at_any_level(native: Library, scheme: str, shape: tuple[int, int]) -> None:
    test_matmul.test_error_is_no_worse_than_that_of_bfloat16_weights(native, scheme, shape)


@pytest.mark.parametrize("scheme", OTHERS)
def test_so_they_are_with_other_groups_and_numbers(native: Library, scheme: str) -> None:
    test_matmul.test_error_is_no_worse_than_that_of_bfloat16_weights(native, scheme, (7, 640))


@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
def test_bits_of_few_rows_do_not_depend_on_each_other(native: Library, scheme: str) -> None:
    test_matmul.test_bits_of_few_rows_depend_on_neither_threads_nor_each_other(native, scheme)


test_fields_need_not_be_aligned = test_matmul.test_fields_need_not_be_aligned
test_values_that_are_no_numbers_stay_in_their_row = test_matmul.test_values_that_are_no_numbers_stay_in_their_row
test_nothing_is_read_past_the_fields = test_matmul.test_nothing_is_read_past_the_fields
test_no_rows_and_no_tokens = test_matmul.test_no_rows_and_no_tokens


@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
def test_products_of_the_largest_values_are_exact(native: Library, scheme: str) -> None:
    """Whole numbers may not overflow: the largest codes of either sign, and tokens of the largest magnitude."""
    for code in (-128, 127) if scheme == "int8" else (0, 255):
        matrix = random_matrix(scheme, 9, 192)
        matrix.codes.fill_(code)
        matrix.scales.fill_(1)
        if scheme != "int8":
            matrix.scales[..., 1] = 0
        for value in (255.0, -255.0):
            x = torch.full((2, 192), value).bfloat16()
            assert torch.equal(PackedMatrix(native, *matrix)(x), (x.double() @ matrix.weights().T).bfloat16())


@pytest.mark.parametrize(("scheme", "activation"), [("int4", "silu"), ("int8", "gelu"), ("int4", "gelu_tanh")])
def test_experts_are_as_exact_as_at_any_level(native: Library, scheme: str, activation: str) -> None:
    test_experts.test_error_is_no_worse_than_that_of_bfloat16(native, scheme, activation)


def test_portable_c_has_the_same_bits_on_both_processors(native: Library, twin: Library) -> None:
    portable = Library(native.functions, 0, threaded=False)
    for scheme in USUAL_SCHEMES:
        matrix, x = random_matrix(scheme, 37, 192), activations(9, 192)
        layers = [test_experts.make(one, scheme) for one in (portable, twin)]
        index, weights = test_experts.choices(9, 3, 6)
        for rows in (1, 2, 9):
            assert torch.equal(PackedMatrix(portable, *matrix)(x[:rows]), PackedMatrix(twin, *matrix)(x[:rows]))
            one, other = (layer(x[:rows], index[:rows], weights[:rows]) for layer in layers)
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["normal", "bits", "sparse"])
@pytest.mark.parametrize("columns", [1, 67, 96, 128])
def test_quantising_and_dequantising_have_the_bits_of_the_reference(native: Library, kind: str, columns: int) -> None:
    for scheme in map(SCHEMES.__getitem__, test_conversion.MADE):
        for dtype in (torch.float32, torch.bfloat16):
            weights = test_conversion.weights_of(kind, (11, columns), columns, 0).to(dtype)
            parts = test_conversion.quantised(native, scheme, weights)
            test_conversion.assert_same_bits(parts, scheme._quantise(weights))
            out = torch.empty(weights.shape, dtype=dtype)
            dequantise(native, scheme.name, *parts, out)
            test_conversion.assert_same_bits((out,), (scheme._dequantise(parts, columns, dtype),))


def test_what_checkpoints_have_comes_back_with_the_bits_of_the_reference(native: Library) -> None:
    for name in OTHERS:
        for shape in ((3, 96), (2, 384)):
            test_conversion.test_what_checkpoints_have_comes_back_with_the_bits_of_the_reference(native, name, shape)


def test_a_row_that_cannot_be_stored_is_told(native: Library) -> None:
    for scheme in map(SCHEMES.__getitem__, test_conversion.MADE):
        test_conversion.test_the_first_row_that_cannot_be_stored_is_told(native, scheme, float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_have_the_bits_of_the_twin(native: Library, twin: Library, dtype: torch.dtype) -> None:
    values, weight = 3 * activations(4, 1100), activations(1, 1100, seed=5)[0]
    for lanes in (4, 8, 16):
        for form in (0, 1, 2):
            one, other = (RmsNorm(of, lanes, form, 1e-6)(values.to(dtype), weight.to(dtype)) for of in (native, twin))
            assert torch.equal(one, other)


def test_attention_and_routing_have_the_bits_of_the_twin(native: Library, twin: Library) -> None:
    keys, values = activations(2 * 2 * 70, 64, seed=2).view(2, 1, 2, 70, 64)
    query, weight = activations(1, 6 * 64), activations(20, 384, seed=4)
    found: list[list[torch.Tensor]] = []
    for one in (native, twin):
        head = query.clone()
        rotate(one, head.view(6, 64), activations(1, 64, seed=6), activations(1, 64, seed=7))
        mixed = token_attention(one, head, keys, values, 0.125)
        found.append([head, mixed, *route(one, mixed[0], weight, 4, normalise=True)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], query)


@pytest.mark.parametrize("case", [test_layer.SMALL, test_layer.CASES[2]])
def test_a_layer_has_the_bits_of_its_parts(native: Library, case: test_layer.Case) -> None:
    test_layer.test_bits_are_those_of_the_parts(case, 17, native)
    test_layer.test_both_halves_at_once_append_the_token(case, native)


@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
def test_experts_of_one_token_in_one_call_have_the_bits_of_the_kernel(native: Library, scheme: str) -> None:
    test_token_experts.test_bits_are_those_of_the_kernel(scheme, [5, 0, 8, 2], native)


@pytest.mark.parametrize("rows", [3, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
def test_rows_have_the_bits_that_they_have_alone(native: Library, scheme: str, rows: int) -> None:
    case = test_rows.INT8 if scheme == "int8" else test_layer.SMALL
    test_rows.test_a_layer_gives_each_row_what_it_gives_it_alone(case, rows, native)
    test_rows.test_experts_give_each_row_what_they_give_it_alone(scheme, rows, 4, native)


def test_memory_that_is_not_there_is_an_error(programs: Programs) -> None:
    functions = EmulatedFunctions(programs, "cortex-a72")
    with pytest.raises(AssertionError, match="coterie_rotate touched memory that is not there: 0x10"):
        functions.coterie_rotate(0, 4096, 1, 16, 4096, 4096)
    functions.close()
