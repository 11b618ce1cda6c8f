"""Wheels as users have them: chosen by pip, installed where there is neither compiler nor clone, and at work there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie import native
from coterie.native import build
from coterie.server.pages import PAGES

from .conftest import ROOT, Bare, Wheels, pip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REFERENCES = ["test_matmul", "test_experts", "test_layer", "test_conversion", "test_token", "test_token_experts"]
"""Tests of tests/native that say which bits the library computes, at every level of instructions."""


@pytest.fixture(scope="module")
def with_library(wheels: Wheels, bare: Callable[[Path], Bare]) -> Bare:
    return bare(wheels.of_this_machine)


@pytest.fixture(scope="module")
def without_library(wheels: Wheels, bare: Callable[[Path], Bare]) -> Bare:
    return bare(wheels.pure)


def module_folder(environment: Bare) -> Path:
    return Path(environment.run("python", "-c", "import coterie; print(coterie.__path__[0])").strip())


@pytest.mark.parametrize(
    ("platform", "chosen"),
    [
        ("manylinux_2_28_x86_64", "x86_64"),
        ("manylinux_2_39_x86_64", "x86_64"),
        ("manylinux_2_28_aarch64", "aarch64"),
        ("manylinux_2_17_x86_64", "pure"),
        ("musllinux_1_2_x86_64", "pure"),
        ("manylinux_2_39_ppc64le", "pure"),
        ("macosx_14_0_arm64", "pure"),
    ],
)
def test_pip_takes_the_wheel_of_the_platform(wheels: Wheels, platform: str, chosen: str, tmp_path: Path) -> None:
    source = ["--no-index", "--no-deps", "--find-links", str(wheels.folder), "--only-binary", ":all:"]
    tags = [word for name in accepted(platform) for word in ("--platform", name)]
    told = pip("install", "--dry-run", "--quiet", "--report", "-", *source, *tags, "--target", str(tmp_path), "coterie")
    (found,) = json.loads(told)["install"]
    assert Path(found["download_info"]["url"]).name == getattr(wheels, chosen).name


def accepted(platform: str) -> list[str]:
    """The tags that pip looks for on such a system; named as another platform, it adds no older ones by itself."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    return [f"manylinux_2_{minor}_{found[2]}" for minor in range(int(found[1]), 4, -1)] if found else [platform]


def test_the_demonstration_runs_with_the_library(with_library: Bare) -> None:
    assert with_library.folder in module_folder(with_library).parents
    found = json.loads(with_library.run("coterie", "doctor", "--quick", "--json"))
    loaded = native.library()
    assert found["native_level"] is not None
    assert loaded is None or found["native_level"] == loaded.level_name
    # OpenMP is torch's own: no wheel brings a second runtime.
    assert with_library.run("python", "-c", "from coterie import native; print(native.library().threaded)") == "True\n"
    assert "Bit-identical" in with_library.run("coterie", "demo")


def test_the_library_has_the_bits_of_the_reference(with_library: Bare) -> None:
    tests = [f"tests/native/{name}.py" for name in REFERENCES]
    told = with_library.run(
        "python", "-m", "pytest", "-p", "no:cacheprovider", "-v", "-m", "not slow", *tests, cwd=ROOT
    )
    assert int(re.search(r"(\d+) passed", told)[1]) > 100  # type: ignore[index]


def test_the_demonstration_runs_without_the_library(without_library: Bare) -> None:
    folder = module_folder(without_library)
    assert without_library.folder in folder.parents
    assert not list(folder.rglob("libcoterie*"))
    assert "Bit-identical" in without_library.run("coterie", "demo")


def test_doctor_says_what_is_missing_and_the_command_that_it_names_builds_it(without_library: Bare) -> None:
    before = json.loads(without_library.run("coterie", "doctor", "--quick", "--json"))
    assert before["native_level"] is None
    (advice,) = [line for line in before["advice"] if "libcoterie" in line]
    assert "many times slower" in advice
    command = shlex.split(advice.split("builds it: ")[1])
    assert command[0] == str(without_library.python)
    try:
        build.compiler()
    except build.BuildError:
        pytest.skip("there is no C compiler")
    subprocess.run(command, check=True)
    assert json.loads(without_library.run("coterie", "doctor", "--quick", "--json"))["native_level"] is not None
    (module_folder(without_library) / "native" / build.LIBRARY.name).unlink()


def test_wheels_differ_by_the_library_only(wheels: Wheels) -> None:
    names = [set(zipfile.ZipFile(wheel).namelist()) for wheel in (wheels.pure, wheels.x86_64, wheels.aarch64)]
    assert names[1] == names[2] == names[0] | {"coterie/native/libcoterie.so"} > names[0]


def test_wheels_have_the_weights_of_both_models_once(wheels: Wheels) -> None:
    sizes = {one.filename: one.file_size for one in zipfile.ZipFile(wheels.pure).infolist()}
    weights = {name for name in sizes if name.endswith(".safetensors")}
    assert weights == {"coterie/bundled/model.safetensors", "coterie/bundled-omni/talker.safetensors"}
    assert all(path.stat().st_size < 90e6 for path in wheels.folder.iterdir())


def test_wheels_have_the_dashboard(wheels: Wheels) -> None:
    names = set(zipfile.ZipFile(wheels.pure).namelist())
    assert {f"coterie/server/dashboard/{name}" for name in PAGES.values()} <= names
