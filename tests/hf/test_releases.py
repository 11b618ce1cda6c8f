"""One warning for a release that is newer than any tested; what a release lacks is an error that names it."""

from __future__ import annotations

import warnings

import pytest

from coterie.errors import ContractError
from coterie.hf import releases
from coterie.hf.releases import TESTED, broken, moved, newer_than_tested, warn_if_newer


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
