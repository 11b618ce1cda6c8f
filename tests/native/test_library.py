"""The library is found or its absence explained; threads are torch's; a fork does not stop it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.native import LEVELS, VARIABLE, Library, library, why_not
from coterie.native.build import LIBRARY
from coterie.native.library import _load, levels_of

needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the library was not built")


def python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_either_a_library_or_a_reason() -> None:
    assert (library() is None) == (why_not() is not None)


@needs_library
def test_the_variable_lowers_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, LEVELS[0])
    assert _load.__wrapped__().level_name == LEVELS[0]


def test_a_level_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, LEVELS[1] + "0")
    with pytest.raises(UsageError, match=f"'{LEVELS[1]}'"):
        _load.__wrapped__()


def test_lowering_never_raises_the_level(native: Library) -> None:
    assert [native.lowered(name).level for name in LEVELS] == [min(i, native.level) for i in range(len(LEVELS))]
    with pytest.raises(UsageError, match=LEVELS[-1]):
        native.lowered(LEVELS[-1] + "0")


def test_levels_are_those_of_the_architecture(native: Library) -> None:
    name = native.functions.coterie_level_name
    assert [name(i).decode() for i in range(len(LEVELS))] == list(LEVELS)
    assert name(-1) is name(len(LEVELS)) is None


def test_every_architecture_has_portable_c() -> None:
    assert levels_of("x86_64") == levels_of("AMD64") == ("default", "avx2", "avx512bf16", "amx")
    assert levels_of("aarch64") == levels_of("arm64") == ("default", "neon", "dotprod")
    assert levels_of("riscv64") == ("default",)


@needs_library
def test_no_second_openmp_runtime_is_loaded() -> None:
    script = (
        "import torch\nfrom pathlib import Path\n"
        "def loaded():\n    lines = Path('/proc/self/maps').read_text().splitlines()\n"
        "    return {line.split()[-1] for line in lines if 'omp' in line}\n"
        "torch.ones(9) + 1\nbefore = loaded()\n"
        "from coterie.native import library\nfound = library()\nprint(found.threaded, loaded() == before)"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not tell what is loaded")
    threaded, same = python(script).split()
    assert same == "True"
    assert threaded == "True" or sys.platform != "linux"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@needs_library
def test_a_forked_child_computes_on_one_thread() -> None:
    script = (
        "import os, torch\nfrom coterie.native import PackedMatrix, library\n"
        "codes, scales = torch.zeros(64, 64, dtype=torch.int8) + 3, torch.ones(64, 1, dtype=torch.bfloat16)\n"
        "product, x = PackedMatrix(library(), 'int8', codes, scales), torch.ones(1, 64, dtype=torch.bfloat16)\n"
        "torch.set_num_threads(2)\nassert product(x)[0, 0] == 192\n"
        "child = os.fork()\n"
        "if not child:\n    torch.set_num_threads(1)\n    os._exit(0 if product(x)[0, 63] == 192 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), product(x)[0, 5].item())"
    )
    assert python(script) == "0 192.0"


def test_it_is_copied_and_pickled_by_being_loaded(native: Library) -> None:
    assert copy.deepcopy(native) is native
    lower = native.lowered("default")
    assert pickle.loads(pickle.dumps(lower)).level_name == "default"
