"""A fit that prunes first: what is gone, what that costs, and where it goes on."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.evaluate import evaluate
from coterie.extraction import prune
from coterie.fitting import Fit, fit, plan_fit
from coterie.inspection import verify
from coterie.origins.selection import Selection
from coterie.store import Store

from .conftest import Fitted

STAGES = ("profile", "prune", "profile-pruned", "plan", "store", "verify", "uniform", "evaluate")


@pytest.fixture(scope="module")
def pruned(readable: Path, request_of, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A store of a pruned model, interrupted once in every stage, with its work beside it."""
    store, request, told = tmp_path_factory.mktemp("pruned") / "store", request_of(keep="75%", bits=4.2), []
    stopped: set[str] = set()

    def stop_once(progress) -> None:
        told.append(progress)
        if progress.stage not in stopped:
            stopped.add(progress.stage)
            raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in STAGES:
            with pytest.raises(KeyboardInterrupt):
                fit(readable, store, request, keep_work=True, progress=stop_once)
        found = fit(readable, store, request, keep_work=True, progress=stop_once)
    return Fitted(readable, store, store.with_name("store.work"), request, found, told)


def test_experts_are_pruned_by_what_was_recorded_and_recorded_anew(pruned, tmp_path: Path) -> None:
    assert list(dict.fromkeys(one.stage for one in pruned.told)) == list(STAGES)
    prune(pruned.model, tmp_path / "alone", keep="75%", profile=pruned.work / "profile.db")
    alone = Selection.read(tmp_path / "alone")
    assert Selection.read(pruned.store) == alone
    found: Fit = pruned.fit
    assert (found.pruned.kept, found.pruned.gone) == (12, 4)
    for bank in found.pruned.banks:
        left = next(kept.experts for key, kept in alone.banks.items() if key.layer == bank.layer)
        assert sorted((*left, *bank.experts)) == list(range(8))
    assert found.pruned.profile.identity != found.profile.identity
    assert found.pruned.profile.tokens == found.profile.tokens
    assert found.made.store.experts_total == 12


def test_its_price_is_that_of_the_pruned_model_and_of_its_bits(pruned) -> None:
    texts = sorted((pruned.work / "texts/scored").iterdir())
    alone = evaluate(pruned.work / "pruned", texts, against=pruned.model, limit=200, memory="8GiB")
    rows = {row.domain: row for row in pruned.fit.evaluated.figures}
    for number, domain in enumerate(("code", "prose")):
        assert rows[domain].pruned.value == pytest.approx(alone.texts[number].comparison.kld.value)
        assert rows[domain].predicted > rows[domain].pruned.value
    assert rows["all"].pruned.value == pytest.approx(alone.total.comparison.kld.value)
    card = (pruned.store / "README.md").read_text()
    for said in (
        "4 of 16 experts are gone: 75% were to stay, by what each adds on average (REAP), each layer by itself",
        "| layer | experts left | gone | numbers of those that are gone |",
        f"| text 0 | 6 | 2 | {', '.join(map(str, pruned.fit.pruned.banks[0].experts))} |",
        "| pruned alone | predicted |",
        f"{rows['all'].pruned.value:.5f}",
        "Uniform of the model with all its experts, of the same size",
        "--keep 75%",
    ):
        assert said in card, said
    assert Fit.from_json(json.loads((pruned.store / "coterie-fit.json").read_text())) == pruned.fit


def test_it_is_compared_with_fewer_bits_for_all_experts_in_the_same_bytes(pruned) -> None:
    uniform, made = pruned.fit.uniform, pruned.fit.made.store
    assert uniform.store.experts_present == 16
    # Records of so small experts are filled up to equal sizes; what is in them is compared.
    one = 8 / 3 / 16  # bits per weight of all that an expert in the next larger scheme adds, at most
    assert 0 <= made.bits * 12 / 16 - uniform.store.bits <= one
    assert uniform.same_size
    assert uniform.error is None
    store = Store.open(pruned.work / "uniform")
    assert {store.scheme(key) for key in store.keys()} == {"int2", "int3"}
    assert uniform.nearest in pruned.fit.advice


def test_the_store_is_verified_against_the_model_with_all_experts(pruned) -> None:
    assert pruned.fit.verified.against == str(pruned.model)
    assert pruned.fit.verified.compared_experts == 12
    assert f"coterie verify store --against {pruned.model}" in pruned.fit.commands
    assert verify(pruned.store, against=pruned.model).ok


@pytest.mark.slow
def test_other_experts_are_another_request_that_keeps_the_profile(pruned, tmp_path: Path, monkeypatch) -> None:
    def stop(progress) -> None:
        if progress.stage == "plan":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(pruned.model, tmp_path / "store", pruned.request, progress=stop)
    other = dataclasses.replace(pruned.request, by="ean", ranking="global", compare=False)
    with pytest.raises(UsageError, match="unfinished work of another request: pruning, compare differ"):
        fit(pruned.model, tmp_path / "store", other)
    finished = [one.name for one in plan_fit(pruned.model, tmp_path / "store", other).stages if one.finished]
    assert finished == ["profile"]
    found = fit(pruned.model, tmp_path / "store", other, restart=True)
    assert (found.pruned.by, found.pruned.ranking, found.pruned.kept) == ("ean", "global", 12)
    assert (found.verdict, found.evaluated.figures[-1].predicted) == ("not compared", None)
    assert found.evaluated.figures[-1].pruned.value > 0
    card = (tmp_path / "store/README.md").read_text()
    assert "what each adds in all (EAN), the experts of all layers ranked together" in card


@pytest.mark.slow
def test_a_profile_that_is_given_prunes_and_what_is_left_is_recorded(pruned, tmp_path: Path) -> None:
    request = dataclasses.replace(
        pruned.request, profile=pruned.work / "profile.db", keep=6, domains=("code",), compare=False
    )
    found = fit(pruned.model, tmp_path / "store", request)
    assert found.pruned.profile.profile == str(request.profile)
    assert found.profile.profile is None
    assert Selection.read(tmp_path / "store").steps[-1]["tokens_of"] == {"text": ["text of code"]}


def test_what_cannot_be_pruned_is_told_before_anything_is_recorded(readable, request_of, tmp_path: Path) -> None:
    for others, message in (
        ({"keep": 1}, "1 experts of .* would be left, and its router chooses 2 per token"),
        ({"keep": "100%"}, "All experts would be kept"),
        ({"keep": "some"}, "'some' is not a number or share of experts"),
        ({"keep": "talker=4"}, "Unknown component 'talker'"),
        ({"by": "ean"}, "The measure ean says which experts are pruned, and none are to be pruned"),
        ({"keep": 6, "by": "random"}, "Unknown measure 'random'"),
        ({"ranking": "global"}, "The ranking global says which"),
    ):
        for ask in (fit, plan_fit):
            with pytest.raises(UsageError, match=message):
                ask(readable, tmp_path / "store", request_of(**others))
    assert not list(tmp_path.iterdir())
