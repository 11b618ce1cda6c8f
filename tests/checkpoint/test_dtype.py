"""The dtype of a model whose configuration states none: what ``dtype="auto"`` of transformers gives."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3OmniMoeTalkerForConditionalGeneration
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker

from coterie.checkpoint import Checkpoint
from coterie.engine import load
from coterie.errors import CheckpointFileError, UnsupportedError
from coterie.extraction import extract
from coterie.inspection import verify
from engine.damage import copy_of, edit_config, edit_tensors
from zoo import logits

INPUTS = {"input_ids": torch.arange(3, 23)[None]}
OLD = Version(transformers.__version__) < Version("5.8")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def silent(zoo_checkpoint, tmp_path) -> Path:
    directory = copy_of(zoo_checkpoint("qwen3_moe", BF16), tmp_path)
    edit_config(directory, dtype=None, torch_dtype=None)
    return directory


@pytest.fixture
def silent_shards(zoo_checkpoint, tmp_path) -> Path:
    directory = copy_of(zoo_checkpoint("qwen3_moe", BF16, "60KB"), tmp_path)
    edit_config(directory, dtype=None, torch_dtype=None)
    return directory


def assert_as_stock(directory: Path, store: Path, dtype: torch.dtype) -> None:
    stock = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", experts_implementation="eager").eval()
    assert stock.dtype == dtype
    extract(directory, store)
    for path in (directory, store):
        model = load(path, expert_memory="50%")
        assert model.dtype == dtype
        assert torch.equal(logits(model, INPUTS), logits(stock, INPUTS))
    assert verify(store, against=directory).ok


def test_the_first_key_as_safetensors_lists_them(silent, tmp_path):
    routers = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]
    edit_tensors(silent, lambda tensors: tensors.update({name: tensors[name].float() for name in routers}))
    with safe_open(silent / "model.safetensors", "pt") as file:
        assert list(file.keys()) == sorted(file.keys())
    assert_as_stock(silent, tmp_path / "store", BF16)


def test_the_first_key_is_of_another_dtype_than_the_rest(silent, tmp_path):
    edit_tensors(silent, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].float()}))
    assert_as_stock(silent, tmp_path / "store", F32)


def test_the_first_file_decides(silent_shards, tmp_path):
    first = min(silent_shards.glob("model-*.safetensors"))
    save_file({name: tensor.half() for name, tensor in load_file(first).items()}, first, metadata={"format": "pt"})
    assert_as_stock(silent_shards, tmp_path / "store", F16)


def test_the_index_states_a_dtype(silent_shards, tmp_path):
    path = silent_shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["dtype"] = "float16"
    path.write_text(json.dumps(index))
    assert_as_stock(silent_shards, tmp_path / "store", F16)


@pytest.mark.parametrize("stated", ["auto", "torch.bfloat16", "int8", "float8_e4m3fn", "Tensor", ""])
def test_an_index_with_another_word_for_a_dtype(stated, silent_shards):
    path = silent_shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["dtype"] = stated
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointFileError, match=r"metadata\.dtype") as caught:
        Checkpoint.open(silent_shards)
    assert caught.value.path == path


def test_an_index_is_not_asked_where_the_configuration_states_a_dtype(silent_shards, tmp_path):
    edit_config(silent_shards, dtype="bfloat16")
    path = silent_shards / "model.safetensors.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {"dtype": "auto"}}))
    assert_as_stock(silent_shards, tmp_path / "store", BF16)
    assert (tmp_path / "store" / "config.json").read_bytes() == (silent_shards / "config.json").read_bytes()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stated", ["auto", "torch.bfloat16", "int8", "float8_e4m3fn", "Tensor"])
def test_a_configuration_with_another_word_for_a_dtype(key, stated, silent):
    edit_config(silent, **{key: stated})
    with pytest.raises(CheckpointFileError, match=rf"for {key}: it is no dtype") as caught:
        Checkpoint.open(silent)
    assert (caught.value.path, caught.value.key) == (silent / "config.json", key)


@pytest.mark.parametrize(
    ("component", "cls"), [("thinker", Thinker), ("talker", Qwen3OmniMoeTalkerForConditionalGeneration)]
)
@pytest.mark.parametrize("whole", ["float32", None])
@pytest.mark.parametrize("part", ["float16", None])
def test_a_part_has_a_dtype_of_its_own(component, cls, whole, part, zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_omni", BF16), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = whole
    config[f"{component}_config"]["dtype"] = part
    (directory / "config.json").write_text(json.dumps(config))
    stock = cls.from_pretrained(directory, dtype="auto", experts_implementation="eager")
    assert Checkpoint.open(directory, component=component).dtype == stock.dtype
    for name, options in (("part", {"component": component}), ("all", {})):
        extract(directory, tmp_path / name, **options)
        if OLD and part is not None:
            with pytest.raises(UnsupportedError, match=r"loads weights of .* as torch\.bfloat16"):
                load(tmp_path / name, component=component, expert_memory="50%")
            continue
        model = load(tmp_path / name, component=component, expert_memory="50%")
        assert model.dtype == stock.dtype
