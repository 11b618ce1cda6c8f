"""Which files are the weights: what transformers opens, or a refusal that names the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coterie.checkpoint import Checkpoint, Location
from coterie.checkpoint.weight_files import INDEX, SINGLE, is_inside, read_index, weights_name
from coterie.engine import load
from coterie.errors import CheckpointFileError, TensorMissingError, UnsupportedError
from coterie.extraction import extract
from coterie.inspection import verify
from engine.damage import copy_of, edit_config, edit_index
from odd_files import ODD, make_odd
from zoo import logits

INPUTS = {"input_ids": torch.arange(3, 23)[None]}


@pytest.fixture
def sharded(zoo_checkpoint, tmp_path) -> Path:
    return copy_of(zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB"), tmp_path)


@pytest.fixture
def other(zoo_checkpoint, tmp_path) -> Path:
    """One file with the tensors of ``sharded``, but other values."""
    path = tmp_path / "other.safetensors"
    single = zoo_checkpoint("qwen3_moe", torch.bfloat16) / SINGLE
    save_file({name: tensor * 1.5 for name, tensor in load_file(single).items()}, path, metadata={"format": "pt"})
    return path


def stock_logits(directory: Path) -> torch.Tensor:
    stock = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", experts_implementation="eager").eval()
    return logits(stock, INPUTS)


def assert_as_stock(directory: Path, store: Path) -> None:
    """Streamed from the checkpoint, and from a store of it."""
    expected = stock_logits(directory)
    assert torch.equal(logits(load(directory, expert_memory="50%"), INPUTS), expected)
    extract(directory, store)
    assert torch.equal(logits(load(store, expert_memory="50%"), INPUTS), expected)
    assert verify(store, against=directory).ok


def test_a_single_file_beside_an_index(sharded, other, tmp_path):
    shards = stock_logits(sharded)
    shutil.copy(other, sharded / SINGLE)
    assert not torch.equal(stock_logits(sharded), shards)
    assert_as_stock(sharded, tmp_path / "store")
    assert {info.path.name for info in Checkpoint.open(sharded).tensors.values()} == {SINGLE}


def test_a_directory_in_place_of_the_single_file(sharded, tmp_path):
    (sharded / SINGLE).mkdir()
    assert_as_stock(sharded, tmp_path / "store")


@pytest.mark.parametrize("name", ["weights.safetensors", "inner/other.safetensors", "shards.safetensors.index.json"])
def test_the_file_that_the_configuration_names(name, sharded, other, tmp_path):
    (sharded / name).parent.mkdir(exist_ok=True)
    if name.endswith(".json"):
        shutil.copy(other, sharded / SINGLE)
        (sharded / INDEX).rename(sharded / name)
    else:
        shutil.copy(other, sharded / name)
    edit_config(sharded, transformers_weights=name)
    assert_as_stock(sharded, tmp_path / "store")


def test_shards_in_a_folder(sharded, tmp_path):
    (sharded / "parts").mkdir()
    for shard in sharded.glob("model-*.safetensors"):
        shard.rename(sharded / "parts" / shard.name)
    edit_index(sharded, lambda places: places.update({name: f"parts/{file}" for name, file in places.items()}))
    assert_as_stock(sharded, tmp_path / "store")


def test_a_tensor_in_two_shards_is_that_of_the_later_one(sharded, tmp_path):
    first, last = (sorted(sharded.glob("model-*.safetensors"))[i] for i in (0, -1))
    tensors = load_file(first)
    name = min(tensors)
    save_file({**load_file(last), name: tensors[name] * 2}, last, metadata={"format": "pt"})
    edit_index(sharded, lambda places: places.update({name: last.name}))
    assert_as_stock(sharded, tmp_path / "store")


@pytest.mark.parametrize("value", ["pytorch_model.bin", "adapter_model.bin", 5, ["model.safetensors"], ""])
def test_a_configuration_that_names_something_else(value, sharded):
    edit_config(sharded, transformers_weights=value)
    with pytest.raises(UnsupportedError, match="transformers_weights") as caught:
        Checkpoint.open(sharded)
    assert (caught.value.path, caught.value.key) == (sharded / "config.json", "transformers_weights")


@pytest.mark.parametrize("value", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors"])
def test_a_configuration_that_names_a_file_outside(value, sharded):
    edit_config(sharded, transformers_weights=value)
    with pytest.raises(CheckpointFileError, match="outside the checkpoint"):
        Checkpoint.open(sharded)


def test_a_file_that_the_configuration_names_and_that_is_not_there(sharded):
    edit_config(sharded, transformers_weights="lost.safetensors")
    with pytest.raises(CheckpointFileError, match=r"lost\.safetensors does not exist"):
        Checkpoint.open(sharded)


def test_a_variant_is_not_opened_by_itself(sharded):
    (sharded / INDEX).unlink()
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    save_file({"a": torch.zeros(1)}, sharded / "model.fp16.safetensors")
    with pytest.raises(CheckpointFileError, match=r"It has model\.fp16\.safetensors.*Rename"):
        Checkpoint.open(sharded)


def test_a_link_to_nothing_is_named(sharded):
    (sharded / INDEX).unlink()
    (sharded / SINGLE).symlink_to(sharded / "gone")
    with pytest.raises(CheckpointFileError, match="a link to none"):
        Checkpoint.open(sharded)


def test_the_order_of_the_decision():
    path = Path("config.json")
    assert weights_name(None, path, {SINGLE, INDEX}.__contains__) == SINGLE
    assert weights_name(None, path, {INDEX}.__contains__) == INDEX
    assert weights_name(None, path, set().__contains__) is None
    assert weights_name("a.safetensors", path, {SINGLE, INDEX}.__contains__) == "a.safetensors"


def test_names_within_the_checkpoint():
    assert all(map(is_inside, ("a.safetensors", "a/b.safetensors", "..a", "a..b/c")))
    assert not any(map(is_inside, ("", "..", "a/..", "/a", "C:a", "a\\b", "a\x00", "a\ud800", "x" * 300)))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"weight_map": 5}', "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": 5}}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "occurs twice"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside"),
        ('{"weight_map": {"a": "x.safetensors"}, "metadata": {"dtype": 5}}', "metadata.dtype"),
        ('{"weight_map": {"a": "x.bin"}}', "no safetensors file"),
        ("[" * 100_000, "deeper"),
    ],
)
def test_an_index_that_is_none(content, match, tmp_path):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises((CheckpointFileError, UnsupportedError), match=match) as caught:
        read_index(tmp_path / INDEX, INDEX)
    assert caught.value.path == tmp_path / INDEX


@pytest.mark.parametrize("kind", ODD)
def test_an_index_that_is_no_regular_file(kind, tmp_path):
    path = make_odd(kind, tmp_path / INDEX)
    with pytest.raises(CheckpointFileError, match="not a regular file"):
        read_index(path, INDEX)


def test_an_index_of_another_checkpoint_names_the_tensor(sharded):
    edit_index(sharded, lambda places: places.update({"model.extra.weight": next(iter(places.values()))}))
    with pytest.raises(CheckpointFileError, match=r"model\.extra\.weight"):
        Location.find(sharded).tensors()


def test_a_lost_shard_is_named_though_the_rest_would_do(sharded):
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises((CheckpointFileError, TensorMissingError), match=lost.name):
        Checkpoint.open(sharded)


def test_the_index_of_a_large_checkpoint(tmp_path):
    names = {f"model.layers.{i}.weight": f"model-{i % 160:05}-of-00160.safetensors" for i in range(124_611)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}, indent=2))
    assert read_index(tmp_path / INDEX, INDEX).weight_map == names


def test_shares_of_a_distributed_checkpoint_are_refused(sharded):
    name = "shard-00000-model-00001-of-00001.safetensors"
    shutil.copy(min(sharded.glob("model-*.safetensors")), sharded / name)
    with pytest.raises(UnsupportedError, match="distributed checkpoint"):
        Checkpoint.open(sharded)


def test_an_adapter_beside_the_model_is_told(sharded):
    (sharded / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="adapter"):
        load(sharded, expert_memory="50%")
