"""A release that the tests do not run with is held against what is relied on before a model is opened."""

from __future__ import annotations

import warnings

import pytest

from coterie.engine import release_check
from coterie.errors import ContractError
from coterie.hf import releases
from coterie.hf.contract import Contract, expect


@pytest.fixture
def release(monkeypatch):
    """Another release, for Coterie."""

    def make(number: str) -> None:
        monkeypatch.setattr(releases, "installed", lambda: number)
        monkeypatch.setattr(release_check, "installed", lambda: number)

    yield make
    releases.warn_if_newer.cache_clear()
    release_check._check_essentials.cache_clear()


def broken() -> None:
    expect(False, "It is blue.")


def refused(monkeypatch) -> None:
    odd = Contract(name="the sky", protects="the view", follower="coterie.hf.caches", check=broken)
    monkeypatch.setattr(release_check, "ESSENTIAL", (*release_check.ESSENTIAL[:1], odd))


@pytest.mark.filterwarnings("ignore:transformers")
@pytest.mark.parametrize("number", ["5.99.0", "5.18.0"])
def test_an_untested_release_that_keeps_its_contracts_opens_models(number, release, readable, open_model):
    release(number)
    assert open_model(readable).coterie.stats() is not None


@pytest.mark.filterwarnings("ignore:transformers")
@pytest.mark.parametrize("number", ["5.99.0", "5.18.0"])
def test_an_untested_release_that_breaks_one_opens_none(number, release, readable, open_model, monkeypatch):
    release(number)
    refused(monkeypatch)
    for _ in range(2):
        with pytest.raises(ContractError, match=rf"transformers {number} does otherwise .* the sky\. It is blue\."):
            open_model(readable)


def test_a_newer_release_is_told_of_once(release, readable, open_model):
    releases.warn_if_newer.cache_clear()
    release("5.99.0")
    with pytest.warns(UserWarning, match="newer than any release"):
        open_model(readable)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_model(readable)


def test_a_tested_release_is_not_examined(readable, open_model, monkeypatch, release):
    release(releases.TESTED[0])
    refused(monkeypatch)
    open_model(readable)


def test_a_name_that_is_gone_is_an_error_of_ours(readable, open_model, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        from transformers.core_model_loading import WhatIsNotThere  # noqa: F401

    monkeypatch.setattr("coterie.engine.opening.build_model", lacking)
    with pytest.raises(ContractError, match="WhatIsNotThere"):
        open_model(readable)
