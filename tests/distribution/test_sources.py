"""The source distribution has what its Makefile works with."""

import re
import tomllib
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parents[2]
INCLUDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]


def test_everything_that_the_makefile_names_is_included() -> None:
    words = re.findall(r"(?<![\w./-])[\w-]+(?:\.\w+)?", (ROOT / "Makefile").read_text())
    named = {word for word in words if (ROOT / word).exists()} - {"pyproject.toml", "build", "__pycache__"}
    assert {"requirements-oldest.lock", "scripts", "tests", "benchmarks"} <= named
    assert named <= set(INCLUDED)


@pytest.mark.parametrize("path", INCLUDED)
def test_what_is_included_exists(path: str) -> None:
    assert (ROOT / path).exists()
