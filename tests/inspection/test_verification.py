from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from coterie.checkpoint import Checkpoint
from coterie.errors import CheckpointNotFoundError, StoreNotFoundError
from coterie.extraction import Progress, extract
from coterie.inspection import verification, verify
from coterie.store import Store
from extraction.test_interruption import flip


@pytest.fixture
def store(moe: Path, tmp_path: Path) -> Path:
    extract(moe, tmp_path / "store", experts="0-5")
    return tmp_path / "store"


@pytest.fixture
def checkpoint(moe: Path, tmp_path: Path) -> Path:
    shutil.copytree(moe, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def sharded(zoo_checkpoint, tmp_path: Path) -> Path:
    shutil.copytree(zoo_checkpoint("qwen3_moe", max_shard_size="200KB"), tmp_path / "sharded")
    return tmp_path / "sharded"


def rewrite_header(path: Path, change) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    # A store's files keep their size: only what is in them is to be wrong.
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def kinds(report) -> list[tuple[str, str]]:
    return [(problem.kind, problem.place) for problem in report.problems]


def test_a_good_store_is_compared_completely(store: Path, moe: Path) -> None:
    told: list[Progress] = []
    report = verify(store, against=moe, progress=told.append)
    assert report.ok
    assert (report.kind, report.experts, report.compared_experts, report.absent_experts) == ("store", 12, 12, 4)
    assert report.compared_tensors == len(Checkpoint.open(moe).keymap.dense)
    assert {one.stage for one in told} == {"checksums", "compare"}
    for stage in ("checksums", "compare"):
        last = [one for one in told if one.stage == stage][-1]
        assert last.done == last.total


def test_a_flipped_bit_in_a_record_is_one_problem(store: Path, moe: Path) -> None:
    key = next(key for key in Store.open(store).keys() if key.expert == 3)
    flip(store / "experts/text/mlp-layer-000.safetensors", Store.open(store).record(key).offset + 7)
    for against in (None, moe):
        (problem,) = verify(store, against=against).problems
        assert (problem.kind, problem.file) == ("corrupt", "experts/text/mlp-layer-000.safetensors")
        assert problem.place.startswith("expert 00003")


def test_a_tokenizer_is_looked_at_beside_a_damaged_header(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(verification, "store_tokenizer_problems", lambda *args: looked.append(args) or [])
    flip(store / "dense.safetensors", 12)
    assert not verify(store).ok
    assert [path for path, *_ in looked] == [store]


def test_a_checkpoint_that_differs_is_told_by_tensor_and_byte(store: Path, checkpoint: Path) -> None:
    tensors = Checkpoint.open(checkpoint).tensors
    flip(checkpoint / "model.safetensors", tensors["model.norm.weight"].offset + 5)
    flip(checkpoint / "model.safetensors", tensors["model.layers.1.mlp.experts.2.up_proj.weight"].offset)
    report = verify(store, against=checkpoint)
    assert kinds(report) == [("corrupt", "model.norm.weight"), ("corrupt", "expert 00002")]
    assert "differs from the checkpoint at its byte 5" in report.problems[0].message
    # The record's gate_up_proj is gate and then up.
    gate = tensors["model.layers.1.mlp.experts.2.gate_proj.weight"].nbytes
    assert f"byte {gate} of gate_up_proj" in report.problems[1].message


def test_dense_tensors_of_other_shape_or_name(store: Path, checkpoint: Path) -> None:
    def change(header: dict) -> None:
        header["mystery.weight"] = header.pop("model.norm.weight")
        header["lm_head.weight"]["shape"] = header["lm_head.weight"]["shape"][::-1]

    rewrite_header(store / "dense.safetensors", change)
    found = kinds(verify(store, against=checkpoint))
    assert ("missing", "model.norm.weight") in found
    assert ("foreign", "mystery.weight") in found
    assert ("corrupt", "lm_head.weight") in found


def test_copied_files_are_compared_too(store: Path, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{}")
    (problem,) = verify(store, against=checkpoint).problems
    assert (problem.kind, problem.file) == ("corrupt", "generation_config.json")


def test_a_store_of_another_model_has_foreign_and_missing_tensors(store: Path, zoo_checkpoint) -> None:
    found = {problem.kind for problem in verify(store, against=zoo_checkpoint("mixtral")).problems}
    assert found >= {"missing", "foreign"}


def test_missing_and_foreign_files(store: Path, moe: Path) -> None:
    (store / "experts/text/mlp-layer-001.safetensors").unlink()
    (store / "extra.json").write_text("{}")
    flip(store / "experts/text/mlp-layer-000.safetensors", -1000)
    report = verify(store, against=moe)
    assert {(problem.kind, problem.file) for problem in report.problems} == {
        ("missing", "experts/text/mlp-layer-001.safetensors"),
        ("foreign", "extra.json"),
        ("corrupt", "experts/text/mlp-layer-000.safetensors"),
    }
    assert report.compared_experts == 6


def test_a_good_checkpoint(sharded: Path, moe: Path) -> None:
    report = verify(sharded, against=sharded)
    assert report.ok
    assert (report.kind, report.compared_tensors) == ("checkpoint", len(Checkpoint.open(sharded).tensors))
    assert report.files == len(list(sharded.glob("model-*.safetensors")))
    assert {problem.kind for problem in verify(moe, against=sharded).problems} == {"corrupt"}


def test_all_bad_shards_are_reported(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].write_bytes(b"\xff" * 100)
    found = {(problem.kind, problem.file) for problem in verify(sharded).problems}
    assert found == {("missing", shards[0].name), ("malformed", shards[1].name), ("malformed", shards[2].name)}


def test_index_and_shards_that_disagree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    moved = value["weight_map"].pop("model.norm.weight")
    value["weight_map"]["model.norm.bias"] = moved
    index.write_text(json.dumps(value))
    assert set(kinds(verify(sharded))) == {("missing", "model.norm.bias"), ("foreign", "model.norm.weight")}


def test_missing_and_unclaimed_tensors_are_all_named(checkpoint: Path) -> None:
    def rename(header: dict) -> None:
        header["mystery.one"] = header.pop("model.norm.weight")
        header["mystery.two"] = header.pop("lm_head.weight")

    original = (checkpoint / "model.safetensors").read_bytes()
    rewrite_header(checkpoint / "model.safetensors", rename)
    assert set(kinds(verify(checkpoint))) >= {("missing", "lm_head.weight"), ("missing", "model.norm.weight")}
    (checkpoint / "model.safetensors").write_bytes(original)

    def add(header: dict) -> None:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header |= dict.fromkeys(("lm_head.mystery", "model.norm.mystery", "mystery.one", "mystery.two"), empty)

    rewrite_header(checkpoint / "model.safetensors", add)
    unclaimed = [("foreign", "lm_head.mystery"), ("foreign", "model.norm.mystery")]
    assert kinds(verify(checkpoint)) == unclaimed
    rewrite_header(checkpoint / "model.safetensors", lambda header: [header.pop(name) for _, name in unclaimed])
    # What transformers leaves out with a warning is no reason not to open the checkpoint, and none to keep quiet.
    assert kinds(verify(checkpoint)) == [("foreign", "mystery.one"), ("foreign", "mystery.two")]


def test_what_is_neither_store_nor_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"coterie\.json"):
        verify(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        verify(tmp_path / "nothing")


def test_the_report_as_json(store: Path) -> None:
    flip(store / "generation_config.json", 0)
    value = json.loads(json.dumps(verify(store).to_json()))
    assert value["schema_version"] == 1
    assert value["ok"] is False
    assert value["problems"][0]["file"] == "generation_config.json"
