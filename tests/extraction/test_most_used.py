"""A store of the most used experts has those that the profile says, and grows by what another adds."""

import numpy as np
import pytest
import torch

from coterie.errors import ProfileIdentityError, UsageError
from coterie.extraction import extract
from coterie.extraction.most_used import take_most_used
from coterie.profiles import ExpectedUse
from coterie.spec import BankKey
from coterie.store import Store
from zoo import ZOO, logits

FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")


def expecting(first, second):
    rates = {FIRST: np.array(first, float), SECOND: np.array(second, float)}
    return ExpectedUse(identity="0", domain=None, modalities=None, rates=rates)


def sizes(first=100, second=100, experts=4):
    return {bank.expert(e): size for bank, size in ((FIRST, first), (SECOND, second)) for e in range(experts)}


def test_the_share_is_of_all_experts_and_every_layer_has_what_a_token_uses():
    expected = expecting([0.9, 0.8, 0.7, 0.6], [0.1, 0.5, 0.2, 0.3])
    assert take_most_used(expected, sizes(), {FIRST: 1, SECOND: 1}, 0.5) == {FIRST: (0, 1, 2, 3), SECOND: (1,)}
    assert take_most_used(expected, sizes(), {FIRST: 1, SECOND: 2}, 0.01) == {FIRST: (0,), SECOND: (1, 3)}
    # Per byte.
    assert take_most_used(expected, sizes(first=1000), {FIRST: 1, SECOND: 1}, 0.5) == {
        FIRST: (0,),
        SECOND: (0, 1, 2, 3),
    }


def test_a_bank_that_nothing_is_known_of_is_refused():
    with pytest.raises(UsageError, match="Nothing was recorded"):
        take_most_used(expecting([1] * 4, [1] * 4), sizes(), {FIRST: 1, BankKey("text", 2, "mlp"): 1}, 0.5)


def present(path):
    return {key: tuple(sorted(bank.records)) for key, bank in Store.open(path).banks.items()}


def test_a_store_of_the_most_used_opens_and_grows(moe, profile, tmp_path, open_model):
    store = tmp_path / "store"
    report = extract(moe, store, top="25%", profile=profile.path, domain="code")
    assert (report.status, report.experts_present) == ("written", 4)
    assert present(store) == {FIRST: (0, 1), SECOND: (0, 1)}
    model = open_model(store, missing="mask")
    assert torch.isfinite(logits(model, ZOO["qwen3_moe"].inputs(seed=0))).all()
    assert extract(moe, store, top="25%", profile=profile.path, domain="prose").status == "grown"
    assert present(store) == {FIRST: (0, 1, 6, 7), SECOND: (0, 1, 6, 7)}
    assert extract(moe, store, top="50%", profile=profile.path).status == "already complete"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": "25%"}, "--profile"),
        ({"profile": True}, "--top"),
        ({"domain": "code"}, "--top"),
        ({"top": "25%", "profile": True, "experts": "0-3"}, "by number and by use"),
        ({"top": "25", "profile": True}, "share"),
        ({"top": "0%", "profile": True}, "share"),
        ({"top": "25%", "profile": True, "domain": "cod"}, "code"),
        ({"top": "25%", "profile": True, "modalities": ["audio"]}, "text"),
    ],
)
def test_what_cannot_be_is_said(moe, profile, tmp_path, options, message):
    options = options | ({"profile": profile.path} if "profile" in options else {})
    with pytest.raises(UsageError, match=message):
        extract(moe, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_another_models_profile_is_refused(moe, profile, tmp_path):
    with pytest.raises(ProfileIdentityError, match="another model"):
        extract(moe, tmp_path / "store", top="25%", profile=profile(tmp_path / "other.db", identity="f" * 32))
