import json
from pathlib import Path

import pytest
import torch

from coterie.extraction import extract


@pytest.fixture
def moe(zoo_checkpoint) -> str:
    return str(zoo_checkpoint("qwen3_moe", torch.bfloat16))


def test_a_good_store_and_a_good_checkpoint_are_code_0(coterie, moe: str, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", experts="0-2")
    outcome = coterie("verify", str(tmp_path / "store"), "--against", moe)
    assert outcome.code == 0
    assert "Nothing is wrong." in outcome.out
    assert "10 experts of the model are not in this partial store." in outcome.out
    assert "6 experts compared bit for bit" in outcome.out
    outcome = coterie("verify", moe)
    assert outcome.code == 0
    assert "Checkpoints have no checksums" in outcome.out


def test_damage_is_code_1_and_named(coterie, moe: str, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store")
    path = tmp_path / "store/experts/text/mlp-layer-001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)
    outcome = coterie("verify", str(tmp_path / "store"))
    assert outcome.code == 1
    assert "corrupt" in outcome.out
    assert "mlp-layer-001.safetensors" in outcome.out
    assert "1 problem found." in outcome.out
    outcome = coterie("verify", str(tmp_path / "store"), "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    assert (found["ok"], found["problems"][0]["rule"]) == (False, "R27")


def test_what_an_interrupted_growth_left_is_told_and_code_0(coterie, moe: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(moe, store, experts="0-2")
    assert json.loads(coterie("verify", str(store), "--json").out)["leftovers"] == []
    left = ["experts/text/.mlp-layer-001.1.safetensors.partial", "experts/text/mlp-layer-000.1.safetensors"]
    for name in left:
        (store / name).write_bytes(b"half")
    outcome = coterie("verify", str(store))
    assert outcome.code == 0
    assert "Nothing is wrong." in outcome.out
    assert "is running now): 2 files, 8 B" in outcome.out
    assert all(name in outcome.out for name in left)
    assert "next growth or extraction removes it" in outcome.out
    outcome = coterie("verify", str(store), "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["leftovers"] == [{"file": name, "nbytes": 4} for name in left]
    assert coterie("extract", moe, str(store), "--experts", "0-2").code == 0
    assert json.loads(coterie("verify", str(store), "--json").out)["leftovers"] == []
    (store / "notes.txt").touch()
    assert coterie("verify", str(store)).code == 1


def test_what_is_no_model_is_an_error(coterie, tmp_path: Path) -> None:
    outcome = coterie("verify", str(tmp_path))
    assert outcome.code == 1
    assert "is neither a store nor a checkpoint" in outcome.err
