"""Repositories that cannot be opened are named by their files or their configuration, before any weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint, Location
from coterie.errors import CheckpointFileError, CheckpointNotFoundError, UnsupportedError

from .conftest import REPO
from .hub import Fault


@pytest.fixture
def repository(publish, zoo_checkpoint, tmp_path):
    """Publishes a repository with these files, and of a checkpoint those that are named."""

    def make(*files: str, of_checkpoint: tuple[str, ...] = (), **config: object) -> Path:
        directory, original = tmp_path / "repository", zoo_checkpoint("qwen3_moe", torch.bfloat16)
        directory.mkdir()
        for file in files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_bytes(b"something")
        for file in of_checkpoint:
            shutil.copy(original / file, directory / file)
        if config:
            stated = json.loads((original / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps(stated | config))
        publish(directory)
        return directory

    return make


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["Qwen3-30B-A3B-Q4_K_M.gguf"], r"has its weights in Qwen3-30B-A3B-Q4_K_M\.gguf, a GGUF file"),
        (["UD-Q4_K_XL/model-00001-of-00002.gguf"], "a GGUF file"),
        (["pytorch_model.bin"], r"pytorch_model\.bin, a pickle, which is never opened"),
        (["model.ckpt"], "a pickle"),
        (["onnx/model.onnx"], "an ONNX graph"),
        (["tf_model.h5"], "TensorFlow"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["weights.npz"], "has no weights in safetensors files"),
        ([], "has no weights in safetensors files"),
    ],
)
def test_other_formats_are_named_by_the_list_of_files(files, said, hub, repository, waits):
    repository(*files, of_checkpoint=("config.json",))
    with pytest.raises(UnsupportedError, match=said):
        Checkpoint.open(REPO)
    assert hub.asked == []  # only the list was read


def test_an_adapter_beside_a_model_is_no_reason_to_refuse_the_model(hub, repository, waits):
    repository("adapter_model.safetensors", of_checkpoint=("config.json", "model.safetensors"))
    (hub.repositories[REPO].commits[hub.repositories[REPO].references["main"]] / "adapter_config.json").write_text("{}")
    assert Checkpoint.open(REPO).banks


def test_what_it_was_made_from_is_named(hub, repository, waits):
    repository("model.gguf")
    hub.repositories[REPO].tags = ["gguf", "base_model:Qwen/Qwen3-30B-A3B", "base_model:quantized:Qwen/Qwen3-30B-A3B"]
    with pytest.raises(UnsupportedError, match=r"Use the model that it was made from: Qwen/Qwen3-30B-A3B\.$"):
        Checkpoint.open(REPO)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            "compressed-tensors",
        ),
    ],
)
def test_other_quantisations_are_named_by_the_configuration(config, said, hub, repository, waits):
    repository(of_checkpoint=("model.safetensors",), **config)
    with pytest.raises(UnsupportedError, match=f"(?i){said}.*original"):
        Checkpoint.open(REPO)
    assert not hub.fetched()  # neither headers nor shards


def test_other_arrangements_of_safetensors_are_named(hub, repository, waits):
    repository("consolidated.safetensors", of_checkpoint=("config.json",))
    with pytest.raises(
        CheckpointFileError, match=r"neither model\.safetensors nor .* It has consolidated\.safetensors"
    ):
        Checkpoint.open(REPO)


def test_an_index_beside_a_stray_single_file_is_decided_as_for_a_directory(
    hub, publish, zoo_checkpoint, tmp_path, waits
):
    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB"), tmp_path / "both")
    shutil.copy(zoo_checkpoint("qwen3_moe", torch.bfloat16) / "model.safetensors", directory)
    publish(directory)
    remote, local = Checkpoint.open(REPO), Checkpoint.open(directory)
    assert {n: t.path.name for n, t in remote.tensors.items()} == {n: t.path.name for n, t in local.tensors.items()}
    remote.download(remote.tensors)
    assert all(torch.equal(remote.read(name), local.read(name)) for name in local.tensors)


def test_a_shard_that_the_index_names_and_the_repository_lacks_is_named(hub, publish, zoo_checkpoint, tmp_path, waits):
    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB"), tmp_path / "lacking")
    next(directory.glob("model-00002*")).unlink()
    publish(directory)
    with pytest.raises(CheckpointFileError, match="has no model-00002"):
        Checkpoint.open(REPO)
    assert not hub.fetched()


def test_long_lists_come_in_pages(hub, text, waits):
    hub.page = 2
    assert set(Location.find(REPO).repository.listing.files) == {path.name for path in text.iterdir()}


def test_pages_at_another_server_are_not_asked_for(hub, text, waits, monkeypatch):
    monkeypatch.setattr(type(hub), "url", property(lambda self: "http://127.0.0.1:9"))
    hub.page = 2
    with pytest.raises(CheckpointNotFoundError, match="goes on at another server"):
        Location.find(REPO)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/outside.json", "a/../../outside.json", "a\\..\\b.json", "a\0b.json"]
)
def test_names_that_lead_elsewhere_are_no_files(name, hub, text, waits, cache, monkeypatch):
    listed = [{"type": "file", "path": name, "size": 3, "oid": "0" * 40}]
    monkeypatch.setattr("checkpoint.hub._listed", lambda directory, path: listed[0])
    with pytest.raises(UnsupportedError, match="no weights"):
        Checkpoint.open(REPO)
    assert not list(cache.parent.glob("outside*"))


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"sha": 5}', b'{"sha": "../../x"}', b"<html>", b"\xff", b"[" * 10_000]
)
def test_an_answer_that_is_no_hub_s_is_an_error(body, hub, text, waits, monkeypatch):
    monkeypatch.setattr("checkpoint.hub.json.dumps", lambda value: body.decode("latin-1"))
    with pytest.raises(CheckpointNotFoundError, match=r"someone/tiny-moe.*(does not seem to be a Hub|cannot be read)"):
        Checkpoint.open(REPO)


def test_xet_is_left_to_the_client_and_compared_all_the_same(hub, text, waits, cache, monkeypatch):
    shard = sorted(path.name for path in text.glob("*.safetensors"))[0]
    monkeypatch.setattr("checkpoint.hub._XET", frozenset({shard}))
    monkeypatch.setattr("coterie.checkpoint.hub.downloads.find_spec", lambda name: object())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    sent: list[bytes] = [b"wrong", b"wrong", (text / shard).read_bytes()]

    def client(repo_id: str, name: str, *, revision: str) -> str:
        if len(sent) == 3:
            hub.faults.append(Fault("status"))  # without effect: nothing else is asked
        path = cache / "models--someone--tiny-moe" / "snapshots" / revision / name
        path.write_bytes(sent.pop(0))
        return str(path)

    monkeypatch.setattr("coterie.checkpoint.hub.downloads.hf_hub_download", client)
    checkpoint = Checkpoint.open(REPO)
    names = [name for name, info in checkpoint.tensors.items() if info.path.name == shard]
    with pytest.raises(CheckpointFileError, match=f"{shard} of {REPO} .*other bytes"):
        checkpoint.download(names)
    hub.faults.clear()
    checkpoint.download(names)
    local = Checkpoint.open(text)
    assert all(torch.equal(checkpoint.read(name), local.read(name)) for name in names)
