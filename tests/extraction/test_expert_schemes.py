"""A scheme for each expert and each of its matrices: what is stored, computed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.errors import UsageError
from coterie.extraction import extract, quantize
from coterie.inspection import inspect, verify
from coterie.integration import quantised
from coterie.store import Store, verify_store
from zoo import ZOO, logits

from .stores import snapshot

FIRST = "text/mlp-layer-000"
MIXED = {"gate_up_proj": "int2", "down_proj": "int4"}
CHOSEN: dict[str, Any] = {
    "schema_version": 1,
    "rest": "int3",
    "experts": {
        f"{FIRST}/00001": MIXED,
        f"{FIRST}/00002": {"gate_up_proj": "native", "down_proj": "int8"},
        f"{FIRST}/00003": "native",
        f"{FIRST}/00004": {"gate_up_proj": "int6", "down_proj": "int6"},
    },
}


@pytest.fixture
def checkpoint(zoo_checkpoint) -> Path:
    return zoo_checkpoint("qwen3_moe", torch.bfloat16)


def test_matrices_are_stored_as_they_were_named(checkpoint: Path, tmp_path: Path, open_model, monkeypatch) -> None:
    extract(checkpoint, tmp_path / "native")
    (tmp_path / "chosen.json").write_text(json.dumps(CHOSEN))
    quantize(tmp_path / "native", tmp_path / "got", expert_schemes=tmp_path / "chosen.json")
    extract(checkpoint, tmp_path / "want", expert_schemes=CHOSEN)
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")
    store = Store.open(tmp_path / "got")
    assert store.manifest.version == 3
    first = [store.scheme(key) for key in sorted(store.keys()) if key.layer == 0][:6]
    assert first == ["int3", "int2+int4", "native+int8", "native", "int6", "int3"]
    key = next(key for key in store.keys() if store.scheme(key) == "native+int8")
    names = [field.name for field in store.layout(key).fields]
    assert names == ["gate_up_proj", "down_proj_int8", "down_proj_int8_scales"]
    assert inspect(tmp_path / "got").banks[0].schemes["int2+int4"] == 1
    assert verify_store(tmp_path / "got").ok
    assert verify(tmp_path / "got", against=checkpoint).ok
    got = logits(open_model(tmp_path / "got"), ZOO["qwen3_moe"].inputs())
    assert torch.equal(logits(open_model(tmp_path / "got", expert_memory="30%"), ZOO["qwen3_moe"].inputs()), got)
    monkeypatch.setattr(quantised, "library", lambda: None)
    want = logits(open_model(tmp_path / "got"), ZOO["qwen3_moe"].inputs())
    distance = (got.float() - want.float()).norm(dim=-1) / want.float().norm(dim=-1)
    assert float(distance.median()) < 0.03


def test_what_is_not_named_stays_and_what_is_there_is_not_rounded_again(checkpoint: Path, tmp_path: Path) -> None:
    extract(checkpoint, tmp_path / "int4", scheme="int4", dense_scheme="native")
    chosen = {"schema_version": 1, "experts": {f"{FIRST}/00001": MIXED}}
    with pytest.warns(UserWarning, match="lossy already"):
        quantize(tmp_path / "int4", tmp_path / "got", expert_schemes=chosen)
    before, store = Store.open(tmp_path / "int4"), Store.open(tmp_path / "got")
    changed = [key for key in store.keys() if store.scheme(key) != "int4"]
    assert [(str(key), store.scheme(key)) for key in changed] == [(f"{FIRST}/00001", "int2+int4")]

    def down(of: Store) -> bytes:
        record = bytearray(of.layout(changed[0]).nbytes)
        of.read_into(changed[0], memoryview(record))
        place = next(field for field in of.layout(changed[0]).fields if field.name == "down_proj_int4")
        return bytes(record[place.offset : place.offset + place.nbytes])

    assert down(store) == down(before)


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({"schema_version": 2}, "schema_version 2, not 1"),
        ({"schema_version": 1, "default": "int3"}, "'default', which means nothing"),
        ({"schema_version": 1, "rest": "int9"}, "Unknown scheme 'int9'"),
        ({"schema_version": 1, "rest": 3}, "'rest' has no scheme"),
        ({"schema_version": 1, "experts": [1]}, "names no experts"),
        ({"schema_version": 1, "experts": {"text/mlp-layer-009/00000": "int3"}}, "which the model does not have"),
        ({"schema_version": 1, "experts": {f"{FIRST}/00000": {"up": "int3"}}}, "Unknown parameter 'up'"),
        ({"schema_version": 1, "experts": {f"{FIRST}/00000": {"down_proj": "int3"}}}, "no scheme for 'gate_up_proj'"),
    ],
)
def test_what_cannot_be_is_refused(chosen: dict[str, Any], match: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        extract(checkpoint, tmp_path / "store", expert_schemes=chosen)
    assert not (tmp_path / "store").exists()


def test_more_bits_than_there_are_two_ways_and_no_file(checkpoint: Path, tmp_path: Path) -> None:
    extract(checkpoint, tmp_path / "int3", scheme="int3", dense_scheme="native")
    more = {"schema_version": 1, "experts": {f"{FIRST}/00001": {"gate_up_proj": "int2", "down_proj": "int4"}}}
    with pytest.raises(UsageError, match="larger and no better"):
        quantize(tmp_path / "int3", tmp_path / "got", expert_schemes=more)
    with pytest.raises(UsageError, match="in two ways"):
        extract(checkpoint, tmp_path / "got", scheme="int4", expert_schemes=more)
    with pytest.raises(UsageError, match="no file"):
        extract(checkpoint, tmp_path / "got", expert_schemes=tmp_path / "absent.json")
