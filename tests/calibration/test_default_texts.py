"""The texts that come with the package: of every domain some, readable, and none that quality is measured with."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.calibration import Calibration, default_texts
from coterie.calibration.defaults import FOLDER
from coterie.files.text import read_text

EVALUATION = Path(__file__).parents[2] / "benchmarks" / "data" / "eval"

LINE = 16
"""Characters of a line that says which document it is from."""


def lines(path: Path) -> set[str]:
    return {line.strip() for line in read_text(path).splitlines() if len(line.strip()) >= LINE}


def test_of_every_domain_some() -> None:
    texts = default_texts()
    domains = {one.domain for one in texts}
    assert domains == {folder.name for folder in FOLDER.iterdir() if folder.is_dir()}
    assert {"prose", "code", "chinese", "languages"} <= domains
    assert {one.kind for one in texts} == {"text"}
    assert sum(one.nbytes for one in texts) < 500_000  # of a package of 50 MB
    assert list(Calibration().material) == texts


def test_none_is_what_quality_is_measured_with() -> None:
    if not EVALUATION.is_dir():
        pytest.skip("the source distribution has no evaluation texts")
    measured = {line for path in EVALUATION.glob("*.txt") for line in lines(path)}
    assert len(measured) > 1000
    common = {line for one in default_texts() for line in lines(one.path)} & measured
    # A loop that everybody writes.
    assert common <= {"for name in names:"}


def test_whose_they_are_is_said() -> None:
    said = read_text(FOLDER / "README.md")
    for one in default_texts():
        assert f"`{one.domain}`" in said, one.path
