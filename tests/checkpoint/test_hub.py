"""Repositories of the Hub, through its own client, from a server on this machine: only what is needed travels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.checkpoint import Checkpoint
from coterie.errors import CheckpointFileError, CheckpointNotFoundError, LoadError, UnsupportedError, UsageError
from coterie.extraction import Allocation, extract
from coterie.planner import plan
from coterie.store import Store
from extraction.profiles import recorded
from zoo import ZOO, logits

from .conftest import REPO
from .hub import Fault

BF16 = torch.bfloat16


@pytest.fixture
def omni(publish, zoo_checkpoint) -> Path:
    """A whole Omni model in shards, each of one component."""
    directory = zoo_checkpoint("qwen3_omni", BF16, "150KB")
    publish(directory)
    return directory


def shards_of(directory: Path, wanted) -> set[str]:
    places = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return {shard for name, shard in places.items() if wanted(name)}


# --- what travels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["60KB", None], ids=["shards", "one file"])
def test_opening_downloads_no_shard(shard_size, hub, publish, zoo_checkpoint):
    directory = zoo_checkpoint("qwen3_moe", BF16, shard_size)
    publish(directory)
    remote, local = Checkpoint.open(REPO), Checkpoint.open(directory)
    assert not list(remote.location.directory.glob("*.safetensors"))
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in remote.tensors.items()} == {
        n: (t.dtype, t.shape, t.nbytes) for n, t in local.tensors.items()
    }
    assert list(remote.banks) == list(local.banks)
    # The client reads the first 100 KB of each file for its header.
    assert all(sent <= 100_001 for sent in hub.fetched().values())


@pytest.mark.parametrize("scheme", [None, "int4"])
def test_a_plan_downloads_no_shard(scheme, hub, publish, zoo_checkpoint):
    directory = zoo_checkpoint("qwen3_moe", BF16)
    publish(directory)
    remote = plan(REPO, memory="4GiB", scheme=scheme, measure=False)
    assert all(sent <= 100_001 for sent in hub.fetched().values())
    local = plan(directory, memory="4GiB", scheme=scheme, measure=False)
    assert remote.disk.download_nbytes > 0 == local.disk.download_nbytes
    assert remote.working_set_nbytes == local.working_set_nbytes
    assert remote.budgets[0].memory.dense_nbytes == local.budgets[0].memory.dense_nbytes
    with pytest.raises(UsageError, match="are not on this machine"):
        plan(REPO, memory="4GiB", probe="a text", measure=False)


def test_a_component_downloads_its_own_shards_only(hub, omni):
    checkpoint = Checkpoint.open(REPO, component="talker")
    checkpoint.download(checkpoint.keymap.dense)
    checkpoint.download(name for key in checkpoint.keys() for name in checkpoint.names_of(key))
    here = {path.name for path in checkpoint.location.directory.glob("*.safetensors")}
    assert here == shards_of(omni, lambda name: name.startswith("talker."))
    assert here < shards_of(omni, lambda name: True)


def by_expert(checkpoint: Path, target: Path) -> Path:
    """A copy with a shard for each expert id and one for all that is dense."""
    shutil.copytree(checkpoint, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    places = {}
    for name in tensors:
        expert = re.search(r"\.experts\.(\d+)\.", name)
        places[name] = f"model-{expert[1] if expert else 'dense'}.safetensors"
    for shard in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, target / shard)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return target


def test_extracting_some_experts_downloads_their_shards_only(hub, publish, zoo_checkpoint, tmp_path):
    publish(by_expert(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "by-expert"))
    report = extract(REPO, tmp_path / "store", experts="0,5", keep_download=True)
    needed = {f"model-{part}.safetensors" for part in ("dense", 0, 5)}
    (snapshot,) = (tmp_path / "cache").rglob("snapshots/*")
    assert {path.name for path in snapshot.glob("*.safetensors")} == needed
    assert {download.file for download in report.downloads} == needed


def test_a_model_of_the_hub_is_exact(hub, text, open_model, zoo_stock):
    model = open_model(REPO, expert_memory="25%")
    inputs = ZOO["qwen3_moe"].inputs(seed=1, batch=2)
    assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))


def test_offsets_are_right_after_downloading(hub, text):
    remote, local = Checkpoint.open(REPO), Checkpoint.open(text)
    remote.download(remote.tensors)
    assert all(torch.equal(remote.read(name), local.read(name)) for name in local.tensors)


def test_a_second_opening_downloads_nothing(hub, text):
    checkpoint = Checkpoint.open(REPO)
    checkpoint.download(checkpoint.tensors)
    hub.asked.clear()
    Checkpoint.open(REPO).dense_state_dict()
    assert hub.fetched("") == {}


# --- revisions --------------------------------------------------------------------------------------------------------


def test_the_revision_is_pinned_when_the_branch_moves(hub, publish, text, zoo_checkpoint):
    checkpoint = Checkpoint.open(REPO)
    first = checkpoint.location.revision
    second = publish(zoo_checkpoint("olmoe", BF16))
    assert first != second
    hub.asked.clear()
    checkpoint.download(checkpoint.tensors)
    assert {asked.revision for asked in hub.asked} == {first}
    local = Checkpoint.open(text)
    assert all(torch.equal(checkpoint.read(name), local.read(name)) for name in local.tensors)


@pytest.mark.parametrize("by", ["tag", "commit"])
def test_a_revision_can_be_chosen(by, hub, publish, text, zoo_checkpoint):
    old = hub.repositories[REPO].references["main"]
    hub.repositories[REPO].references["v1"] = old
    publish(zoo_checkpoint("olmoe", BF16))
    assert Checkpoint.open(REPO).config.model_type == "olmoe"
    chosen = Checkpoint.open(REPO, revision="v1" if by == "tag" else old)
    assert chosen.config.model_type == "qwen3_moe"
    assert chosen.location.revision == old


def test_fingerprints_are_of_the_commit(hub, publish, text, tmp_path):
    before = Checkpoint.open(REPO)
    integrity, identity = before.integrity, before.identity
    assert Checkpoint.open(REPO).integrity == integrity
    copy = Path(shutil.copytree(text, tmp_path / "again"))
    publish(copy)
    after = Checkpoint.open(REPO)
    assert after.identity == identity == Checkpoint.open(text).identity
    assert after.integrity != integrity


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_unknown_repository_is_named(hub):
    with pytest.raises(CheckpointNotFoundError, match=r"(?s)'nobody/nothing'.*Check the name"):
        Checkpoint.open("nobody/nothing")


def test_an_unknown_revision_is_an_error(hub, text):
    with pytest.raises(CheckpointNotFoundError, match="revision") as caught:
        Checkpoint.open(REPO, revision="v9")
    assert caught.value.revision == "v9"


def test_a_repository_of_pickles_is_refused(hub, publish, text, tmp_path):
    directory = tmp_path / "pickles"
    directory.mkdir()
    shutil.copy(text / "config.json", directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    publish(directory, "someone/pickles")
    with pytest.raises((CheckpointFileError, UnsupportedError), match="someone/pickles"):
        Checkpoint.open("someone/pickles")


def test_offline_uses_what_is_here(hub, text):
    online = Checkpoint.open(REPO)
    online.download(online.tensors)
    hub.asked.clear()
    offline = Checkpoint.open(REPO, offline=True)
    assert torch.equal(offline.read("lm_head.weight"), online.read("lm_head.weight"))
    assert offline.integrity == online.integrity
    assert hub.asked == []


def test_offline_without_the_repository_says_so(hub, text):
    with pytest.raises(CheckpointNotFoundError, match="offline"):
        Checkpoint.open(REPO, offline=True)
    assert hub.asked == []


def test_offline_with_only_some_shards_says_so(hub, text):
    online = Checkpoint.open(REPO)
    online.download(["lm_head.weight"])
    hub.asked.clear()
    with pytest.raises(CheckpointFileError, match="Run again without --offline"):
        Checkpoint.open(REPO, offline=True)
    assert hub.asked == []


def test_an_unreachable_hub_says_so(hub, text, waits):
    hub.close()
    with pytest.raises(CheckpointNotFoundError, match="could not be asked"):
        Checkpoint.open(REPO)


def test_a_shard_that_cannot_be_downloaded_is_named_and_tried_again(hub, text, waits):
    checkpoint = Checkpoint.open(REPO)
    shard = checkpoint.tensors["lm_head.weight"].path.name
    hub.faults.append(Fault("status", f"cdn {shard}", status=500))
    with pytest.raises(CheckpointFileError, match=f"(?s){shard} of {REPO} could not be downloaded.*are kept"):
        checkpoint.download(checkpoint.tensors)
    hub.faults.clear()
    checkpoint.download(checkpoint.tensors)
    assert torch.equal(checkpoint.read("lm_head.weight"), Checkpoint.open(text).read("lm_head.weight"))


def test_fetching_absent_experts_downloads_no_shards(hub, publish, zoo_checkpoint, tmp_path, open_model, zoo_stock):
    publish(by_expert(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "by-expert"))
    extract(REPO, tmp_path / "store", experts="0")
    shutil.rmtree(tmp_path / "cache")  # the store is on another machine now
    model = open_model(tmp_path / "store", missing="fetch")
    (snapshot,) = (tmp_path / "cache").rglob("snapshots/*")
    assert not list(snapshot.glob("*.safetensors"))
    model.coterie.record_tokens()
    inputs = {"input_ids": torch.tensor([[17]])}
    assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))
    used = {expert for token in model.coterie.stats().tokens for expert in token.experts} - {0}
    assert 0 < len(used) < 7
    assert not list(snapshot.glob("*.safetensors"))
    model.coterie.close()
    assert {key.expert for key in Store.open(tmp_path / "store").keys()} == used | {0}


def test_the_commit_of_the_store_is_fetched_whatever_the_branch_is_now(
    hub, publish, text, zoo_checkpoint, tmp_path, open_model
):
    extract(REPO, tmp_path / "store", experts="0")
    publish(zoo_checkpoint("mixtral", BF16))
    model = open_model(tmp_path / "store", missing="fetch")
    assert logits(model, ZOO["qwen3_moe"].inputs()).isfinite().all()
    assert model.coterie.stats().fetched.experts > 0


def test_another_repository_is_not_the_source(hub, publish, text, zoo_checkpoint, tmp_path, open_model):
    extract(REPO, tmp_path / "store", experts="0")
    publish(text, "someone/else")
    with pytest.raises(LoadError, match="is not the checkpoint"):
        open_model(tmp_path / "store", missing="fetch", source="someone/else")


def test_bits_are_allocated_by_weights_which_a_dry_run_does_not_download(hub, publish, zoo_checkpoint, tmp_path):
    checkpoint = zoo_checkpoint("qwen3_moe", BF16)
    publish(by_expert(checkpoint, tmp_path / "by-expert"))
    everybody = {("text", "code"): [(expert, 1.0 + expert, 80) for expert in range(8)]}
    profile = recorded(tmp_path / "p.db", Checkpoint.open(checkpoint), everybody)
    allocation = Allocation(bits=4, profile=profile)
    with pytest.raises(UsageError, match="--dry-run"):
        extract(REPO, tmp_path / "store", allocation=allocation, dry_run=True)
    report = extract(REPO, tmp_path / "store", allocation=allocation)
    local = extract(checkpoint, tmp_path / "local", allocation=allocation)
    assert report.allocation == local.allocation
