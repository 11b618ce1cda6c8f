"""What would make a model silently wrong is an error that names the thing; what a caller may ask for is checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import coterie
from coterie.engine import load, open_source
from coterie.errors import (
    CheckpointError,
    CheckpointFileError,
    CheckpointNotFoundError,
    ChecksumError,
    LoadError,
    StoreError,
    StoreFormatError,
    StoreNotFoundError,
    TensorMissingError,
    UnclaimedTensorError,
    UnsupportedError,
    UsageError,
)
from zoo import ZOO, logits, stock

from .damage import copy_of, edit_config, edit_index, edit_tensors, register

DENSE = [
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.1.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


INPUTS = {"input_ids": torch.arange(3, 23)[None]}


def stock_model(directory: Path) -> transformers.PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto", experts_implementation="eager").eval()


@pytest.fixture
def damaged(zoo_checkpoint, tmp_path) -> Path:
    """A copy of Qwen3-MoE in one file."""
    return copy_of(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path)


@pytest.fixture
def sharded(zoo_checkpoint, tmp_path) -> Path:
    """A copy of Qwen3-MoE in several files."""
    return copy_of(zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB"), tmp_path)


@pytest.fixture
def store(zoo_store, tmp_path) -> Path:
    """A copy of a store of Qwen3-MoE."""
    return copy_of(zoo_store("qwen3_moe", torch.bfloat16), tmp_path)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
def test_a_missing_dense_tensor_is_named(name, damaged):
    edit_tensors(damaged, lambda tensors: tensors.pop(name))
    with pytest.raises(TensorMissingError, match="never filled up with random weights") as caught:
        load(damaged)
    assert caught.value.tensor == name
    assert name in str(caught.value)


@pytest.mark.parametrize("expert", [0, 5, 7])
@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_a_missing_expert_tensor_names_the_expert(projection, expert, damaged):
    name = f"model.layers.1.mlp.experts.{expert}.{projection}.weight"
    edit_tensors(damaged, lambda tensors: tensors.pop(name))
    with pytest.raises(TensorMissingError, match=r"layers\.1\.mlp\.experts") as caught:
        load(damaged)
    # The last expert of all cannot be told from a smaller bank; the number that is there and the number needed can.
    assert f"expert {expert} of" in str(caught.value) or "needs 8 tensors" in str(caught.value)


def test_a_missing_fused_bank_is_named(zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("gpt_oss", torch.bfloat16), tmp_path)
    name = "model.layers.1.mlp.experts.down_proj_bias"
    edit_tensors(directory, lambda tensors: tensors.pop(name))
    with pytest.raises(TensorMissingError) as caught:
        load(directory)
    assert caught.value.tensor == name


def test_an_extra_tensor_is_named(damaged):
    edit_tensors(damaged, lambda tensors: tensors.update({"model.layers.0.adapter.weight": torch.zeros(2, 2)}))
    with pytest.raises(UnclaimedTensorError, match=r"model\.layers\.0\.adapter\.weight"):
        load(damaged)


def test_a_prediction_head_that_transformers_ignores_is_no_error(zoo_checkpoint, tmp_path, zoo_stock, open_model):
    directory = copy_of(zoo_checkpoint("qwen3_next", torch.bfloat16), tmp_path)
    edit_tensors(directory, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(64, 128)}))
    inputs = ZOO["qwen3_next"].inputs()
    assert torch.equal(logits(open_model(directory), inputs), logits(zoo_stock("qwen3_next", torch.bfloat16), inputs))


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.gate.weight", "lm_head.weight"]
)
def test_a_dense_tensor_of_another_shape_is_named(name, damaged):
    edit_tensors(damaged, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    with pytest.raises((CheckpointError, LoadError)) as caught:
        load(damaged)
    assert name in str(caught.value)


def test_an_expert_tensor_of_another_shape_is_named(damaged):
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    edit_tensors(damaged, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    with pytest.raises(CheckpointFileError, match=r"layers\.0\.mlp\.experts"):
        load(damaged)


def test_an_expert_tensor_of_the_same_size_but_another_shape_is_named(damaged):
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    edit_tensors(damaged, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(CheckpointFileError, match=r"experts\.3\.down_proj"):
        load(damaged)


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.1.mlp.experts.2.gate_proj.weight"],
        ["model.layers.0.mlp.experts.7.down_proj.weight", "model.layers.0.mlp.experts.0.up_proj.weight"],
        ["model.layers.1.self_attn.q_proj.weight"],
    ],
)
def test_tensors_of_mixed_dtypes_are_converted_as_stock_converts_them(names, damaged, tmp_path):
    edit_tensors(damaged, lambda tensors: tensors.update({name: tensors[name].float() * 1.001 for name in names}))
    stock = stock_model(damaged)
    coterie.extract(damaged, tmp_path / "store")
    for path in (damaged, tmp_path / "store"):
        assert torch.equal(logits(load(path, expert_memory="50%"), INPUTS), logits(stock, INPUTS))


def test_integers_among_floating_experts_are_named(damaged):
    name = "model.layers.1.mlp.experts.2.gate_proj.weight"
    edit_tensors(damaged, lambda tensors: tensors.update({name: tensors[name].to(torch.int16)}))
    with pytest.raises(CheckpointFileError, match="different dtypes: BF16, I16"):
        load(damaged)


def test_layers_beyond_the_last_are_left_out_as_stock_leaves_them_out(damaged):
    edit_config(damaged, num_hidden_layers=1, layer_types=None)
    stock = stock_model(damaged)
    with pytest.warns(UserWarning, match=r"left out.*layers\.1\.|layers\.1\..*left out"):
        model = load(damaged, expert_memory="50%")
    assert torch.equal(logits(model, INPUTS), logits(stock, INPUTS))


def test_layers_that_predict_further_tokens_are_expected(damaged):
    edit_config(damaged, num_hidden_layers=1, layer_types=None, num_nextn_predict_layers=1)
    stock = stock_model(damaged)
    assert torch.equal(logits(load(damaged, expert_memory="50%"), INPUTS), logits(stock, INPUTS))


def test_parts_beside_the_layers_are_left_out_as_stock_leaves_them_out(damaged):
    edit_tensors(damaged, lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 64)}))
    stock = stock_model(damaged)
    with pytest.warns(UserWarning, match=r"1 tensors .*v_head\.summary\.weight"):
        model = load(damaged, expert_memory="50%")
    assert torch.equal(logits(model, INPUTS), logits(stock, INPUTS))


@pytest.mark.parametrize("name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias"])
def test_a_parameter_that_a_module_of_the_model_does_not_have_is_named(name, damaged):
    edit_tensors(damaged, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(UnclaimedTensorError, match=re.escape(name)):
        load(damaged)


def test_a_configuration_with_more_layers_lacks_tensors(damaged):
    edit_config(damaged, num_hidden_layers=3, layer_types=None)
    with pytest.raises(TensorMissingError, match=r"layers\.2\."):
        load(damaged)


@pytest.mark.parametrize("experts", [4, 16])
def test_a_configuration_with_another_number_of_experts_is_refused(experts, damaged):
    edit_config(damaged, num_local_experts=experts)
    with pytest.raises(CheckpointError, match=f"needs {experts} tensors"):
        load(damaged)


def test_a_configuration_with_another_expert_size_is_refused(damaged):
    edit_config(damaged, moe_intermediate_size=48)
    with pytest.raises(CheckpointFileError, match="do not belong together"):
        load(damaged)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_renamed_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.rename(sharded / "weights.safetensors")
    with pytest.raises(CheckpointFileError, match=shard.name):
        load(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointFileError, match="truncated") as caught:
        load(sharded)
    assert caught.value.path == shard


def test_an_index_that_points_outside_is_refused(sharded):
    edit_index(sharded, lambda places: places.update({"lm_head.weight": "../elsewhere.safetensors"}))
    with pytest.raises(CheckpointFileError, match="outside the checkpoint"):
        load(sharded)


def test_an_index_that_disagrees_with_a_shard_is_refused(sharded):
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    edit_index(sharded, lambda places: places.update({n: last.name for n in places if places[n] == first.name}))
    with pytest.raises(CheckpointFileError, match=f"{last.name}, which does not have it"):
        load(sharded)


def test_a_tensor_that_the_index_does_not_list_is_read_as_stock_reads_it(sharded):
    edit_index(sharded, lambda places: places.pop("model.norm.weight"))
    stock = stock_model(sharded)
    assert torch.equal(logits(load(sharded, expert_memory="50%"), INPUTS), logits(stock, INPUTS))


def test_pickled_weights_are_refused(damaged):
    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin, a pickle"):
        load(damaged)


def test_a_directory_without_weights_is_refused(damaged):
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UnsupportedError, match="no weights in safetensors files"):
        load(damaged)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(StoreNotFoundError):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_broken_configuration_is_named(text, damaged):
    (damaged / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointFileError) as caught:
        load(damaged)
    assert caught.value.path == damaged / "config.json"


# --- kinds of models --------------------------------------------------------------------------------------------------


def test_code_from_the_repository_is_never_run(damaged):
    (damaged / "modeling_evil.py").write_text("raise SystemExit('ran')")
    edit_config(damaged, model_type="evil", auto_map={"AutoConfig": "modeling_evil.EvilConfig"})
    with pytest.raises(UnsupportedError, match="never run") as caught:
        load(damaged)
    assert caught.value.model_type == "evil"


def test_an_unknown_model_type_is_named(damaged):
    edit_config(damaged, model_type="not_a_model")
    with pytest.raises(UnsupportedError, match="not_a_model"):
        load(damaged)


def test_an_unknown_architecture_is_named(damaged):
    edit_config(damaged, architectures=["Qwen9MoeForCausalLM"])
    with pytest.raises(UnsupportedError, match="Qwen9MoeForCausalLM"):
        load(damaged)


def test_a_configuration_without_architecture_is_refused(damaged):
    edit_config(damaged, architectures=None)
    with pytest.raises(UnsupportedError, match="does not name its architecture"):
        load(damaged)


@pytest.mark.parametrize("method", ["bitsandbytes", "quark", "torchao", "hqq", "fbgemm_fp8", "mxfp8", "coterie"])
def test_quantised_checkpoints_are_refused_by_name(method, damaged):
    edit_config(damaged, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedError, match=f"quantised with '{method}'") as caught:
        load(damaged)
    assert caught.value.quant_method == method
    assert re.search("Use the model's original|remove quantization_config", caught.value.advice)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "states blocks of"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "'fp4' packed into bytes"),
        ("awq", "quantised with 'awq'"),
    ],
)
def test_other_forms_of_quantisation_are_refused(config, match, damaged):
    edit_config(damaged, quantization_config=config)
    with pytest.raises(UnsupportedError, match=match):
        load(damaged)


def test_quantisation_of_a_part_is_refused(zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_omni", torch.bfloat16), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["thinker_config"]["quantization_config"] = {"quant_method": "fp8"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="fp8"):
        load(directory)


def test_a_model_without_experts_is_refused(tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"Qwen3ForCausalLM of transformers \S+ cannot be streamed\. It has no"):
        load(tmp_path)


def llama4() -> transformers.PreTrainedModel:
    text = transformers.Llama4TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        pad_token_id=0,
    )
    return transformers.Llama4ForCausalLM(text)


def test_experts_of_an_unknown_class_are_named(tmp_path, monkeypatch):
    """As a class will be that a later transformers brings without its decorator."""
    monkeypatch.setattr("coterie.hf.families.registry._BY_CLASS_NAME", {})
    llama4().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"Llama4ForCausalLM.*Llama4TextExperts cannot be hooked") as caught:
        load(tmp_path)
    assert "no experts" not in str(caught.value), "it has experts; they cannot be hooked"


# --- names and arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(CheckpointNotFoundError, match=path):
        load(path)


def test_a_hub_id_that_is_not_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointNotFoundError, match="'nobody/nothing'"):
        load("nobody/nothing")


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
@pytest.mark.parametrize("component", ["thinkr", "vocoder"])
def test_an_unknown_component_is_refused(component, kind, zoo_checkpoint, zoo_store):
    path = {"checkpoint": zoo_checkpoint, "store": zoo_store}[kind]("qwen3_omni", torch.bfloat16)
    with pytest.raises(UsageError, match=f"{component!r}.*'talker', 'thinker'"):
        load(path, component=component)


def test_a_component_of_a_text_model_is_refused(damaged):
    with pytest.raises(UsageError, match=r"'talker'.*'text'"):
        load(damaged, component="talker")


def test_a_component_that_is_not_in_the_store_is_refused(zoo_checkpoint, tmp_path):
    from coterie.extraction import extract

    extract(zoo_checkpoint("qwen3_omni", torch.bfloat16), tmp_path / "store", component="thinker")
    with pytest.raises(UsageError, match="only the thinker, not the talker"):
        load(tmp_path / "store", component="talker")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"missing": "maks"}, "Did you mean 'mask'"),
        ({"eviction": "lur"}, "Did you mean 'lru'"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"max_context": 0}, "max_context must be at least 1"),
        ({"experts_per_token": 0}, "experts_per_token must be between 1 and 8"),
        ({"experts_per_token": 9}, "experts_per_token must be between 1 and 8"),
        ({"memory": "8 GBytes"}, "is not a size"),
        ({"memory": 0}, "must be positive"),
        ({"memory": -5}, "must be positive"),
        ({"memory": True}, "must be a number"),
    ],
    ids=str,
)
def test_arguments_are_checked(options, named, damaged):
    with pytest.raises(UsageError, match=named):
        load(damaged, **({"expert_memory": "100%"} if "memory" not in options else {}), **options)


def test_another_device_is_refused(damaged):
    with pytest.raises(UnsupportedError, match="cuda"):
        load(damaged, device="cuda")


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
def test_a_directory_has_no_revision(kind, zoo_checkpoint, zoo_store):
    path = (zoo_checkpoint if kind == "checkpoint" else zoo_store)("qwen3_moe", torch.bfloat16)
    with pytest.raises(UsageError, match=r"only repositories of the Hub have revisions"):
        load(path, revision="main")


def test_more_than_makes_sense_is_said(damaged, open_model, monkeypatch):
    monkeypatch.setattr("coterie.engine.opening.usable_cores", lambda: 1)
    before = torch.get_num_threads()
    try:
        with pytest.warns(UserWarning, match=r"2 threads wait for each other on 1 cores"):
            open_model(damaged, threads=2)
    finally:
        torch.set_num_threads(before)
    longest = json.loads((damaged / "config.json").read_text())["max_position_embeddings"]
    with pytest.warns(UserWarning, match=rf"more tokens than the {longest} that the model was made for"):
        open_model(damaged, max_context=longest + 1)


def test_threads_are_set_when_asked_for(damaged, open_model):
    before = torch.get_num_threads()
    try:
        open_model(damaged)
        assert torch.get_num_threads() == before
        open_model(damaged, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# --- stores -----------------------------------------------------------------------------------------------------------


def test_plain_transformers_cannot_open_a_store(store):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(store, local_files_only=True)


def test_an_unfinished_store_is_refused(store):
    (store / "coterie.json").unlink()
    with pytest.raises((StoreError, CheckpointError)):
        load(store)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, LoadError),
        ({"num_hidden_layers": 1}, LoadError),
        ({"moe_intermediate_size": 48}, LoadError),
        ({"num_local_experts": 4}, LoadError),
        ({"hidden_size": 32}, LoadError),
        ({"vocab_size": 64}, LoadError),
    ],
    ids=str,
)
def test_a_store_with_another_configuration_of_the_same_length_is_refused(changes, error, store):
    config = store / "config.json"
    before = config.stat().st_size
    edit_config(store, **changes)
    text = json.dumps(json.loads(config.read_text()), separators=(",", ":"))
    config.write_text(text + " " * (before - len(text)))
    with pytest.raises(ChecksumError, match=r"config\.json differs from its checksum"):
        load(store)
    register(config)  # a publisher can make a manifest fit
    with pytest.raises(error, match=r"belong|holds a|shape|does not|another"):
        load(store)


def test_a_store_with_a_changed_configuration_is_refused(store):
    edit_config(store, num_hidden_layers=1)
    with pytest.raises(StoreFormatError, match=r"config\.json"):
        load(store)


def test_a_store_with_the_dense_part_of_another_model_is_refused(store, zoo_store):
    shutil.copy(zoo_store("olmoe", torch.bfloat16) / "dense.safetensors", store / "dense.safetensors")
    with pytest.raises((StoreError, LoadError), match="dense"):
        load(store)


def test_a_store_with_a_truncated_segment_is_refused(store):
    segment = sorted((store / "experts").rglob("*.safetensors"))[0]
    segment.write_bytes(segment.read_bytes()[:-4096])
    with pytest.raises(StoreFormatError, match=segment.name):
        load(store)


def test_home_is_expanded_for_stores(zoo_store, monkeypatch):
    store = zoo_store("qwen3_moe", torch.bfloat16)
    monkeypatch.setenv("HOME", str(store.parent))
    assert open_source(f"~/{store.name}").directory == store


def test_a_model_says_where_it_is_from_as_stock_does(readable, open_model):
    """Libraries that are given a model look there for its tokenizer."""
    expected, model = stock(readable, torch.bfloat16), open_model(readable)
    assert model.name_or_path == expected.name_or_path == str(readable)
    assert model.config.name_or_path == expected.config.name_or_path
