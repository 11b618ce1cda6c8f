"""Schemes by trust: the most trusted keep more bits, the store says which, and it computes as its records say."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import ProfileIdentityError, UsageError
from coterie.extraction import extract, quantize
from coterie.extraction.precision import SchemesByTrust
from coterie.inspection import verify
from coterie.spec import BankKey
from coterie.store import Store
from zoo import ZOO, logits

from .stores import snapshot

LINE = "trust:top25%=native,rest=int4"
FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")


def schemes(path):
    return {key: [record.scheme for _, record in sorted(bank.records.items())] for key, bank in
            Store.open(path).banks.items()}  # fmt: skip


def test_the_most_trusted_of_every_layer_go_first():
    steps = SchemesByTrust.parse("trust: top25%=native, top50%=int8, rest=int4")
    scores = {FIRST: [0.1, 0.9, 0.5, 0.5], SECOND: [0.2, 0.2, 0.2, 0.3]}
    got = steps.assign([bank.expert(e) for bank in scores for e in range(4)], scores)
    assert [got[FIRST.expert(e)] for e in range(4)] == ["int4", "native", "int8", "int4"]
    assert [got[SECOND.expert(e)] for e in range(4)] == ["int8", "int4", "int4", "native"]
    with pytest.raises(UsageError, match="Nothing was recorded of text"):
        steps.assign([BankKey("text", 2, "mlp").expert(0)], scores)


def test_a_share_that_is_no_whole_number_is_rounded_up():
    got = SchemesByTrust.parse("trust:top10%=native,rest=int4").assign(
        [FIRST.expert(e) for e in range(3)], {FIRST: [0.0, 0.0, 1.0]}
    )
    assert list(got.values()) == ["int4", "int4", "native"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trusty:top25%=native,rest=int4", "Did you mean 'trust'"),
        ("trust:", "names no scheme"),
        ("trust:top25%=native", "ascend"),
        ("trust:rest=int4,top25%=native", "ascend"),
        ("trust:top50%=native,top25%=int8,rest=int4", "ascend"),
        ("trust:top25=native,rest=int4", "share"),
        ("trust:top0%=native,rest=int4", "share"),
        ("trust:top100%=native,rest=int4", "share"),
        ("trust:topmost%=native,rest=int4", "share"),
        ("trust:25%=native,rest=int4", "share"),
        ("trust:top25%=int7,rest=int4", "int7"),
        ("trust:top25%,rest=int4", "names no scheme"),
    ],
)
def test_what_cannot_be_read_is_said(text, message):
    with pytest.raises(UsageError, match=message):
        SchemesByTrust.parse(text)


def test_one_scheme_is_left_to_others():
    assert SchemesByTrust.parse("int4") is None


def test_a_store_by_trust_is_made_grown_verified_and_runs(moe, profile, tmp_path, open_model):
    store = tmp_path / "store"
    # Experts that were never chosen are trusted at 0.5; of the two that were, equal as they are, the same.
    report = extract(moe, store, scheme=LINE, profile=profile.path, domain="code")
    assert report.complete
    counts = [bank.count("native") for bank in schemes(store).values()]
    assert counts == [2, 2]
    assert {scheme for bank in schemes(store).values() for scheme in bank} == {"native", "int4"}
    assert verify(store, against=moe).ok
    model = open_model(store)
    got = logits(model, ZOO["qwen3_moe"].inputs(seed=0))
    whole = logits(open_model(moe), ZOO["qwen3_moe"].inputs(seed=0))
    small = extract(moe, tmp_path / "int4", scheme="int4").store
    rounded = logits(open_model(small), ZOO["qwen3_moe"].inputs(seed=0))
    assert torch.isfinite(got).all()
    assert not torch.equal(got, whole)
    assert not torch.equal(got, rounded)
    assert extract(moe, store, scheme=LINE, profile=profile.path, domain="code").status == "already complete"


def test_quantising_a_store_gives_what_extraction_gives(moe, profile, tmp_path):
    extract(moe, tmp_path / "native")
    extract(moe, tmp_path / "want", scheme=LINE, profile=profile.path)
    quantize(tmp_path / "native", tmp_path / "got", scheme=LINE, profile=profile.path)
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")
    with pytest.raises(UsageError, match="int4"):
        # What is in four bits cannot have more.
        quantize(tmp_path / "got", tmp_path / "back", scheme="trust:top50%=int8,rest=int4", profile=profile.path)


def test_a_checkpoint_is_quantised_by_trust(moe, profile, tmp_path):
    extract(moe, tmp_path / "want", scheme=LINE, profile=profile.path)
    quantize(moe, tmp_path / "got", scheme=LINE, profile=profile.path)
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_a_profile_and_a_scheme_by_trust_go_together(moe, profile, tmp_path):
    for make in (extract, quantize):
        with pytest.raises(UsageError, match="profile"):
            make(moe, tmp_path / "store", scheme=LINE)
    with pytest.raises(UsageError, match="profile"):
        quantize(moe, tmp_path / "store", scheme="int4", profile=profile.path)
    other = profile(tmp_path / "other.db", identity="f" * 32)
    with pytest.raises(ProfileIdentityError, match="another model"):
        extract(moe, tmp_path / "store", scheme=LINE, profile=other)
    assert not (tmp_path / "store").exists()
