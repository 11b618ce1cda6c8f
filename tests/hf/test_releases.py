"""One warning for a release that is newer than any tested; what a release lacks is an error that names it."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from coterie.errors import ContractError
from coterie.hf import releases
from coterie.hf.releases import TESTED, broken, moved, newer_than_tested, warn_if_newer

ROOT = Path(__file__).parents[2]


def minor(release: str) -> str:
    version = Version(release)
    return f"{version.major}.{version.minor}"


def test_the_list_is_that_of_the_releases_with_a_table_of_models():
    assert list(TESTED) == sorted(TESTED, key=Version)
    assert set(TESTED) == json.loads((ROOT / "docs/models.json").read_text()).keys()


def test_its_ends_are_those_of_the_locks():
    def locked(name: str) -> str:
        (release,) = re.findall(r"^transformers==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
        return release

    assert locked("requirements-oldest.lock") == TESTED[0]
    assert locked("requirements-between.lock") in TESTED[1:-1]
    assert locked("requirements.lock") == TESTED[-1]


def test_the_readme_says_the_same():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (wanted,) = [one for one in map(Requirement, dependencies) if one.name == "transformers"]
    ends = {one.operator: one.version for one in wanted.specifier}
    assert ends.keys() == {">=", "<"}
    *most, last = map(minor, TESTED)
    said = f"transformers {ends['>=']} or newer (below {ends['<']}), tested with {', '.join(most)} and {last}."
    assert said in " ".join((ROOT / "README.md").read_text().split())
    assert minor(TESTED[0]) == ends[">="]


@pytest.mark.parametrize(
    ("release", "newer"),
    [
        ("5.7.0", False),
        ("5.20.1", False),
        (TESTED[-1], False),
        ("5.99.0", True),
        ("6.0.0.dev0", True),
        ("my-fork", True),
    ],
)
def test_newer_than_any_tested(release, newer):
    assert newer_than_tested(release) is newer


def test_one_warning_in_a_process(monkeypatch):
    monkeypatch.setattr(releases, "installed", lambda: "5.99.0")
    warn_if_newer.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match=r"transformers 5\.99\.0 is newer than any release that Coterie was tested"
        ):
            warn_if_newer()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_if_newer()
    finally:
        warn_if_newer.cache_clear()


def test_no_warning_of_a_tested_release(monkeypatch):
    monkeypatch.setattr(releases, "installed", lambda: TESTED[0])
    warn_if_newer.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_newer()
    warn_if_newer.cache_clear()


def test_what_transformers_lacks_is_an_error_that_says_so():
    with (
        pytest.raises(ContractError, match=r"coterie\.hf\.x finds no more what it needs in transformers"),
        moved("coterie.hf.x"),
    ):
        from transformers.core_model_loading import WhatIsNotThere  # noqa: F401
    with pytest.raises(ContractError), moved("coterie.hf.x"):
        import transformers.not_a_module  # noqa: F401


def test_what_another_package_lacks_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError, match="not_a_package"), moved("coterie.hf.x"):
        import not_a_package  # noqa: F401


@pytest.mark.parametrize(("release", "advice"), [("5.99.0", f"install {TESTED[-1]}"), (TESTED[0], "report it")])
def test_advice_goes_by_the_release(release, advice, monkeypatch):
    monkeypatch.setattr(releases, "installed", lambda: release)
    error = broken("a name", "Something is otherwise.")
    assert (error.release, error.contract) == (release, "a name")
    assert advice in str(error)
