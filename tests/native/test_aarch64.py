"""The library as it is built for 64-bit ARM, emulated: what the other tests say of every level, and the same bits.

Nothing here is timed: an emulator says nothing about speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from coterie.kernels.norms import RmsNorm
from coterie.native import LEVELS, Library, PackedMatrix, dequantise, library, quantise, rotate, route, token_attention
from coterie.native.library import levels_of
from coterie.quant import SCHEMES

from . import emulation, test_conversion, test_experts, test_layer, test_matmul, test_token
from .emulation import EmulatedFunctions, Programs
from .matrices import activations, random_matrix

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


test_error = test_matmul.test_error_is_no_worse_than_that_of_bfloat16_weights
test_few_rows = test_matmul.test_bits_of_few_rows_depend_on_neither_threads_nor_each_other
test_many_rows = test_matmul.test_bits_of_many_rows_depend_on_neither_threads_nor_each_other
test_alignment = test_matmul.test_fields_need_not_be_aligned
test_no_numbers = test_matmul.test_values_that_are_no_numbers_stay_in_their_row
test_nothing_past_the_fields = test_matmul.test_nothing_is_read_past_the_fields
test_nothing_at_all = test_matmul.test_no_rows_and_no_tokens
test_error_of_experts = test_experts.test_error_is_no_worse_than_that_of_bfloat16
test_order_of_experts = test_experts.test_bits_depend_on_neither_threads_nor_order_nor_other_tokens
test_order_of_experts_with_many_tokens = (
    test_experts.test_bits_with_many_tokens_depend_on_neither_threads_nor_order_nor_other_tokens
)
test_quantised_bits = test_conversion.test_the_bits_are_those_of_the_reference
test_a_row_that_cannot_be_stored = test_conversion.test_the_first_row_that_cannot_be_stored_is_told
test_rotation = test_token.test_rotation_has_torch_s_bits
test_attention = test_token.test_attention_is_no_worse_than_torch_s
test_router = test_token.test_router_chooses_as_torch
test_layer_of_one_token = test_layer.test_bits_are_those_of_the_parts
