"""What an export leaves behind, how it goes on, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.checkpoint import Checkpoint
from coterie.errors import ChecksumError, CoterieError, DiskSpaceError, StoreError, UsageError
from coterie.exporting import export
from coterie.extraction import extract, prune
from coterie.extraction.progress import Progress
from extraction.stores import snapshot
from store.faults import EVERY, Killed, KillingCalls, WatchedCalls
from zoo import ZOO
from zoo.files import load
from zoo.quantised import quantised
from zoo.tokenizer import add_tokenizer


@pytest.fixture(scope="module")
def store(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with a tokenizer, 6 of 8 experts."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(moe, folder / "checkpoint")
    add_tokenizer(folder / "checkpoint", chat=True)
    prune(folder / "checkpoint", folder / "store", keep="75%", by="random")
    return folder / "store"


def test_the_report_the_files_and_their_checksums(store: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    planned = export(store, tmp_path / "out", shard_limit=60_000, dry_run=True)
    assert planned.status == "planned"
    assert not (tmp_path / "out").exists()
    before = snapshot(store)
    report = export(store, tmp_path / "out", shard_limit=60_000, progress=told.append)
    assert snapshot(store) == before
    assert [(file.file, file.nbytes) for file in report.files] == [(file.file, file.nbytes) for file in planned.files]
    found = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert {file.file: file.nbytes for file in report.files} == found
    assert {"tokenizer.json", "coterie-selection.json", "model.safetensors.index.json", "SHA256SUMS"} <= found.keys()
    assert told[-1].stage == "export"
    assert told[-1].done == told[-1].total == report.written_nbytes
    for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
        found.pop(name)
    assert found.keys() == {"SHA256SUMS"}
    selection = json.loads((tmp_path / "out/coterie-selection.json").read_text())
    assert [len(bank["experts"]) for bank in selection["banks"]] == [6, 6]
    assert json.loads(json.dumps(report.to_json()))["experts"] == {"text": 6}


def test_one_file_of_weights_needs_no_index(store: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names
    assert "model.safetensors.index.json" not in names


@pytest.mark.parametrize("every", EVERY)
def test_killed_anywhere_it_goes_on_and_is_no_checkpoint_before(store: Path, tmp_path: Path, every: int) -> None:
    calls = WatchedCalls()
    export(store, tmp_path / "want", shard_limit=90_000, calls=calls)
    want = snapshot(tmp_path / "want")
    resumed = 0
    for at in range(0, calls.count, 7 * every):
        out = tmp_path / f"out-{at}"
        with pytest.raises(Killed):
            export(store, out, shard_limit=90_000, calls=KillingCalls(at))
        if not (out / "config.json").exists():
            with pytest.raises(CoterieError):
                Checkpoint.open(out)
        resumed += export(store, out, shard_limit=90_000).status == "resumed"
        assert snapshot(out) == want
        shutil.rmtree(out)
    assert resumed


def test_an_unfinished_export_of_another_store_is_discarded_when_told(store: Path, moe: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        export(store, tmp_path / "out", shard_limit=60_000, calls=KillingCalls(60))
    prune(moe, tmp_path / "other", keep=4, by="random")
    with pytest.raises(StoreError, match="--restart"):
        export(tmp_path / "other", tmp_path / "out")
    export(tmp_path / "other", tmp_path / "out", restart=True)
    export(tmp_path / "other", tmp_path / "want")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "want")


def test_places_that_cannot_be(store: Path, moe: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        export(store, tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        export(store, tmp_path / "file")
    with pytest.raises(UsageError, match="lies within"):
        export(store, store / "out")
    with pytest.raises(UsageError, match="itself"):
        export(store, store)
    extract(moe, tmp_path / "store")
    with pytest.raises(UsageError, match="is a store"):
        export(store, tmp_path / "store")
    with pytest.raises(UsageError, match="checkpoint already"):
        export(moe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full/notes.txt").read_text() == "mine"


def test_stores_that_are_no_whole_model(moe: Path, zoo_checkpoint, tmp_path: Path) -> None:
    extract(moe, tmp_path / "partial", experts="0-3")
    with pytest.raises(UsageError, match="partial store: 8 experts"):
        export(tmp_path / "partial", tmp_path / "out")
    extract(zoo_checkpoint("qwen3_omni", torch.bfloat16), tmp_path / "thinker", component="thinker")
    with pytest.raises(UsageError, match="only the thinker"):
        export(tmp_path / "thinker", tmp_path / "out")


def test_lossy_stores_are_dequantised_when_told(moe: Path, tmp_path: Path, open_model) -> None:
    extract(moe, tmp_path / "int8", scheme="int8", dense_scheme="int8")
    with pytest.raises(UsageError, match="--dequantise"):
        export(tmp_path / "int8", tmp_path / "out")
    report = export(tmp_path / "int8", tmp_path / "out", dequantise=True)
    assert report.dequantised
    original, lossy = Checkpoint.open(moe), Checkpoint.open(tmp_path / "out")
    assert lossy.identity == original.identity
    errors = []
    for name, info in original.tensors.items():
        assert (lossy.tensors[name].dtype, lossy.tensors[name].shape) == (info.dtype, info.shape)
        before, after = original.read(name).float(), lossy.read(name).float()
        errors.append(float((before - after).norm() / before.norm()))
    assert 0 < max(errors) < 0.02
    extract(moe, tmp_path / "native")
    with pytest.warns(UserWarning, match="nothing to dequantise"):
        export(tmp_path / "native", tmp_path / "plain", dequantise=True)


def test_matrices_in_several_schemes_are_dequantised(moe: Path, tmp_path: Path) -> None:
    bank = "text/mlp-layer-000"
    schemes = {
        "schema_version": 1,
        "rest": "native",
        "experts": {
            f"{bank}/00001": {"gate_up_proj": "int2", "down_proj": "int6"},
            f"{bank}/00002": {"gate_up_proj": "native", "down_proj": "int8"},
            f"{bank}/00003": "int3",
        },
    }
    extract(moe, tmp_path / "mixed", expert_schemes=schemes)
    with pytest.raises(UsageError, match="--dequantise"):
        export(tmp_path / "mixed", tmp_path / "out")
    export(tmp_path / "mixed", tmp_path / "out", dequantise=True)
    original, made = Checkpoint.open(moe), Checkpoint.open(tmp_path / "out")
    changed = {name for name in original.tensors if not torch.equal(original.read(name), made.read(name))}
    layer = "model.layers.0.mlp.experts"
    assert changed == {
        f"{layer}.{expert}.{name}.weight"
        for expert, names in (
            (1, ("gate_proj", "up_proj", "down_proj")), (2, ("down_proj",)), (3, ("gate_proj", "up_proj", "down_proj"))
        )
        for name in names
    }  # fmt: skip


@pytest.mark.parametrize("native", [0, 3])
def test_native_experts_of_another_dtype_stay_exact_beside_dequantised_ones(
    moe: Path, tmp_path: Path, open_model, native: int
) -> None:
    """The experts of one layer are float32 in a checkpoint of a model that computes in bfloat16."""
    shutil.copytree(moe, tmp_path / "checkpoint")
    weights = load_file(tmp_path / "checkpoint/model.safetensors")
    layer = "model.layers.0.mlp.experts"
    fine = {n: w.float() + 2**-20 if n.startswith(layer) else w for n, w in weights.items()}
    save_file(fine, tmp_path / "checkpoint/model.safetensors", {"format": "pt"})
    schemes = {
        "schema_version": 1, "rest": "int8", "experts": {f"text/mlp-layer-000/{native:05}": "native"}
    }  # fmt: skip
    extract(tmp_path / "checkpoint", tmp_path / "mixed", expert_schemes=schemes)
    export(tmp_path / "mixed", tmp_path / "out", dequantise=True)
    made = Checkpoint.open(tmp_path / "out")
    for name in made.tensors:
        if name.startswith(layer):
            assert made.tensors[name].dtype == "F32"
            assert torch.equal(made.read(name), fine[name]) == name.startswith(f"{layer}.{native}.")
        else:
            assert made.tensors[name].dtype == "BF16"
    inputs = ZOO["qwen3_moe"].inputs(length=20)
    with torch.no_grad():
        store, exported = (open_model(tmp_path / name)(**inputs).logits for name in ("mixed", "out"))
    stock, _ = load(tmp_path / "out", torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, exported)
    assert (store - exported).abs().max() < 0.1


def test_lossy_stores_of_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    extract(quantised("qwen3_moe", tmp_path / "checkpoint"), tmp_path / "int4", scheme="int4")
    with pytest.raises(UsageError, match="fp8"):
        export(tmp_path / "int4", tmp_path / "out", dequantise=True)


@pytest.mark.parametrize("file", ["dense.safetensors", "experts/text/mlp-layer-001.safetensors"])
def test_damage_is_not_passed_on(store: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(store, tmp_path / "damaged")
    data = bytearray((tmp_path / "damaged" / file).read_bytes())
    data[-2000] ^= 1
    (tmp_path / "damaged" / file).write_bytes(data)
    with pytest.raises(ChecksumError):
        export(tmp_path / "damaged", tmp_path / "out")
    assert not (tmp_path / "out/config.json").exists()


def test_a_full_disk_is_said_before_anything_is_written(store: Path, tmp_path: Path, monkeypatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("coterie.exporting.exporting.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(DiskSpaceError, match="Free"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_limit_of_nothing_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 bytes"):
        export(store, tmp_path / "out", shard_limit=0)
