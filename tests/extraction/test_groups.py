"""Stores whose groups have another size: made, opened, verified, grown, requantised; and those of before, unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import coterie
from coterie.errors import UsageError
from coterie.store import Store


def version_of(store: Path) -> int:
    return int(json.loads((store / "coterie.json").read_text())["version"])


@pytest.mark.parametrize(
    ("scheme", "dense", "version"),
    [("int4", "int8", 1), ("int3", "native", 3), ("int4-g32", "native", 5), ("int4", "int8-g128", 5)],
)
def test_a_store_has_the_lowest_version_that_can_describe_it(
    zoo_checkpoint, tmp_path: Path, scheme: str, dense: str, version: int
) -> None:
    store = tmp_path / "store"
    coterie.extract(zoo_checkpoint("qwen3_moe", torch.bfloat16), store, scheme=scheme, dense_scheme=dense)
    assert version_of(store) == version
    assert {Store.open(store).scheme(key) for key in Store.open(store).keys()} == {scheme}


def test_groups_of_another_size_are_verified_inspected_and_requantised(zoo_checkpoint, tmp_path: Path) -> None:
    checkpoint, store = zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "store"
    made = coterie.extract(checkpoint, store, scheme="int8-g32", dense_scheme="int4-g32", experts="0-1")
    usual = coterie.extract(checkpoint, tmp_path / "usual", scheme="int8", dense_scheme="int4", experts="0-1")
    assert made.store_nbytes > usual.store_nbytes
    grown = coterie.extract(checkpoint, store)
    assert grown.complete
    assert coterie.verify(store, against=checkpoint).ok
    report = coterie.inspect(store)
    assert {scheme for bank in report.banks for scheme in bank.schemes} == {"int8-g32"}
    assert report.dense_scheme == "int4-g32"
    with pytest.warns(UserWarning, match="lossy already"):
        again = coterie.quantize(store, tmp_path / "again", scheme="int3-g128")
    assert again.complete
    with pytest.raises(UsageError, match="larger and no better"):
        coterie.quantize(tmp_path / "again", tmp_path / "more", scheme="int3")


def test_what_checkpoints_alone_have_is_no_scheme_to_quantise_to(zoo_checkpoint, tmp_path: Path) -> None:
    checkpoint = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    for asked in ({"scheme": "int4-g32-sym"}, {"dense_scheme": "int8-zero"}):
        with pytest.raises(UsageError, match="Nothing is quantised to"):
            coterie.extract(checkpoint, tmp_path / "store", **asked)
