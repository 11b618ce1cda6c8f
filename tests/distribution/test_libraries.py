"""The libraries in the wheels on processors that this machine does not have, emulated."""

from __future__ import annotations

import os
import platform
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.native import Library, PackedMatrix, dequantise, library
from coterie.native.library import levels_of
from coterie.quant import SCHEMES
from coterie.spec.encodings import USUAL_SCHEMES
from native import emulation
from native.emulation import AARCH64, X86_64, Architecture, EmulatedFunctions, Programs
from native.matrices import activations, random_matrix
from native.test_conversion import assert_same_bits, quantised

from .conftest import Wheels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROCESSORS = {
    "cortex-a53": ("aarch64", AARCH64, "neon"),
    "cortex-a76": ("aarch64", AARCH64, "dotprod"),
    # The first x86-64 of all: an instruction of a later one that is not chosen at run time ends the process.
    "Opteron_G1": ("x86_64", X86_64, "default"),
    "Nehalem": ("x86_64", X86_64, "default"),
    "Haswell": ("x86_64", X86_64, "avx2"),
}


@pytest.fixture(scope="module", params=PROCESSORS)
def emulated(
    request: pytest.FixtureRequest, wheels: Wheels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmulatedFunctions, str, str]]:
    """The functions of the library in the wheel, the kind of processor, and the highest level that it has."""
    machine, architecture, level = PROCESSORS[request.param]
    if architecture is X86_64 and platform.machine() != "x86_64":
        pytest.skip("cc compiles for another kind of processor")
    reason = emulation.missing(architecture)
    if reason:
        required = architecture is AARCH64 and os.environ.get(emulation.REQUIRED)
        (pytest.fail if required else pytest.skip)(reason)
    functions = EmulatedFunctions(
        _programs(wheels, machine, architecture, tmp_path_factory), request.param, architecture
    )
    yield functions, machine, level
    functions.close()


def _programs(wheels: Wheels, machine: str, architecture: Architecture, folders: pytest.TempPathFactory) -> Programs:
    folder = folders.mktemp(machine)
    with zipfile.ZipFile(getattr(wheels, machine)) as archive:
        unpacked = Path(archive.extract("coterie/native/libcoterie.so", folder))
    return Programs(unpacked, emulation.compile_server(folder / "emulated", architecture))


def test_the_level_is_that_of_the_processor(emulated: tuple[EmulatedFunctions, str, str]) -> None:
    functions, machine, level = emulated
    assert functions.coterie_level_name(functions.coterie_level(len(levels_of(machine)) - 1)).decode() == level


def test_products_and_conversions_have_the_bits_of_this_machine(emulated: tuple[Any, str, str]) -> None:
    here = library()
    if here is None:
        pytest.skip("the library was not built")
    functions, machine, highest = emulated
    twin = here.lowered("default")
    for level in range(levels_of(machine).index(highest) + 1):
        one = Library(functions, level, threaded=False)
        for scheme in (*USUAL_SCHEMES, "int4-g128"):
            matrix, x = random_matrix(scheme, 37, 192), activations(9, 192)
            for rows in (1, 2, 9):
                got, expected = (PackedMatrix(of, *matrix)(x[:rows]) for of in (one, twin))
                # Sums in another order, at other levels than that of portable C.
                assert torch.equal(got, expected) if level == 0 else torch.allclose(got, expected, rtol=0.02, atol=0.05)
            weights = activations(11, 192).float()
            parts = quantised(one, SCHEMES[scheme], weights)
            assert_same_bits(parts, quantised(twin, SCHEMES[scheme], weights))
            out = torch.empty(weights.shape)
            dequantise(one, scheme, *parts, out)
            assert_same_bits((out,), (SCHEMES[scheme]._dequantise(parts, 192, torch.float32),))
