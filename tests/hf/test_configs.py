"""Configurations of strangers: every value that is none is an error that names file and key."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from coterie.errors import CheckpointFileError, CoterieError, UnsupportedError
from coterie.hf.config_values import computing_dtype
from coterie.hf.configs import load_config, read_config, resolve_model
from coterie.hf.implementations import unavailable_attention
from odd_files import ODD, make_odd
from zoo import MATRIX


@pytest.fixture
def directory(zoo_checkpoint, tmp_path) -> Path:
    """The configuration of a small Qwen3-MoE, alone."""
    (tmp_path / "config.json").write_bytes((zoo_checkpoint("qwen3_moe") / "config.json").read_bytes())
    return tmp_path


def change(directory: Path, changes: dict[str, object]) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_experts": None}, "num_experts"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"hidden_size": 1.5}, "hidden_size"),
        ({"rms_norm_eps": []}, "rms_norm_eps"),
        ({"vocab_size": {"a": 1}}, "vocab_size"),
        ({"dtype": "auto"}, "dtype"),
        ({"torch_dtype": "float4"}, "torch_dtype"),
        ({"text_config": {"dtype": "auto"}}, "text_config.dtype"),
        ({"model_type": ["qwen3_moe"]}, "model_type"),
        ({"x": {"model_type": 5}}, "x.model_type"),
        ({"architectures": [1]}, "architectures"),
        ({"architectures": {"0": "Qwen3MoeForCausalLM"}}, "architectures"),
        ({"architectures": 5}, "architectures"),
        ({"pad_token_id": 2**63}, "pad_token_id"),
        ({"is_encoder_decoder": 65537}, "is_encoder_decoder"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 2}}, "partial_rotary_factor"),
        ({"rope_parameters": {"mrope_section": 5}}, "mrope_section"),
        ({"rope_parameters": {"mrope_section": [4, [1], 2]}}, "mrope_section"),
        ({"rope_parameters": {"mrope_section": [4, 2, "2"]}}, "mrope_section"),
    ],
)
def test_a_value_that_is_none_is_named(changes, key, directory):
    path = change(directory, changes)
    with pytest.raises(CheckpointFileError) as caught:
        load_config(directory)
    assert str(path) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"n_group": 3}, "n_group"),
        ({"n_group": 0}, "n_group"),
        ({"n_group": 8}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"topk_group": 0}, "topk_group"),
    ],
)
def test_groups_of_experts_have_to_agree(changes, key, zoo_checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((zoo_checkpoint("deepseek_v3") / "config.json").read_bytes())
    assert load_config(tmp_path).n_routed_experts == 8
    path = change(tmp_path, changes)
    with pytest.raises(CheckpointFileError, match=f"for {key}") as caught:
        load_config(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["__name__", "torch", "AutoModel", "Qwen3MoeConfig", "Qwen9MoeForCausalLM", ""])
def test_an_architecture_that_is_no_model(name, directory):
    change(directory, {"architectures": [name]})
    with pytest.raises(UnsupportedError, match="has no class"):
        resolve_model(load_config(directory), None)


def test_a_class_that_cannot_be_imported_says_why(directory, monkeypatch):
    """As with a torchvision that was made for another torch; to install another transformers would not help."""
    config = load_config(directory)
    # The module that there is now: transformers puts another in its place when a first class is imported.
    import transformers

    def import_module(_, name):
        raise ModuleNotFoundError(f"Could not import module {name!r}.") from RuntimeError("no operator x::nms")

    monkeypatch.delattr(transformers, config.architectures[0], raising=False)
    monkeypatch.setattr(type(transformers), "_get_module", import_module)
    with pytest.raises(UnsupportedError, match=r"cannot import its class .*RuntimeError: no operator x::nms") as caught:
        resolve_model(config, None)
    assert "torchvision" in caught.value.advice


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": [' + b"[]," * 2_000_000 + b"0]}",
    ],
)
def test_a_configuration_that_is_not_json(content, directory):
    path = directory / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError) as caught:
        load_config(directory)
    assert caught.value.path == path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [*ODD, "huge"])
def test_a_configuration_that_is_no_small_file(kind, tmp_path):
    path = tmp_path / "config.json"
    if kind in ODD:
        make_odd(kind, path)
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(CheckpointFileError, match=r"cannot be read: .*(not a regular file|limit)") as caught:
        read_config(tmp_path)
    assert caught.value.path == path


def test_numbers_beyond_json_are_read(directory):
    path = change(directory, {"initializer_range": float("inf"), "x": float("nan")})
    assert "Infinity" in path.read_text()
    assert load_config(directory).initializer_range == float("inf")


def test_names_of_dtypes():
    assert computing_dtype("bfloat16") is torch.bfloat16
    for name in ("auto", "int8", "float8_e4m3fn", "Tensor", "torch.float32"):
        assert computing_dtype(name) is None


@pytest.mark.parametrize("value", ["flash_attention_2", "evil/kernel", "sdpa", "paged|sdpa", {"": "flash_attention_3"}])
def test_a_wish_for_attention_is_left_to_transformers(value, directory):
    change(directory, {"attn_implementation": value})
    config = load_config(directory)
    assert config._attn_implementation is None
    wish = unavailable_attention(read_config(directory))
    assert wish == (None if value == "sdpa" else "flash_attention_3" if isinstance(value, dict) else value)


def test_eager_attention_is_more_than_a_wish(directory):
    change(directory, {"attn_implementation": "eager"})
    assert load_config(directory)._attn_implementation == "eager"
    assert unavailable_attention(read_config(directory)) is None


@pytest.mark.parametrize("value", [5, [], True])
def test_attention_by_something_else_than_a_name(value, directory):
    change(directory, {"attn_implementation": value})
    with pytest.raises(CheckpointFileError, match="attn_implementation"):
        load_config(directory)


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "modelopt"),
        ({"quantization_config": {"quant_method": "quark"}}, "quark"),
        ({"quantization_config": "fp8"}, "fp8"),
        ({"quantization_config": ["awq"]}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
    ],
)
def test_a_quantisation_is_named_with_what_to_use_instead(changes, method, directory):
    change(directory, changes)
    with pytest.raises(UnsupportedError, match=f"quantised with .*{method}.*Use the model's original"):
        read_config(directory)


def test_code_of_the_repository_is_not_run_where_transformers_has_the_model(directory):
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    change(directory, {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}})
    assert type(load_config(directory)).__module__.startswith("transformers.")


@pytest.mark.parametrize("value", [5, [], "x", {"AutoConfig": 5}, {"AutoConfig": ["a", "b"]}])
def test_a_broken_reference_to_code(value, directory):
    change(directory, {"auto_map": value})
    with suppress(CoterieError):  # whatever transformers thinks of it
        load_config(directory)


def test_a_type_of_model_that_transformers_computes_with_another_class():
    """Its makers name a class of their own, which is not in transformers."""
    variant = MATRIX["sarvam_moe"]
    if reason := variant.why_not:
        pytest.skip(reason)
    config = variant.config()
    config.architectures = ["SarvamMoEForCausalLM"]
    assert resolve_model(config, None) == (variant.model_class, config)
    config.architectures = ["SarvamMoEForSomethingElse"]
    with pytest.raises(UnsupportedError, match="has no class 'SarvamMoEForSomethingElse'"):
        resolve_model(config, None)
