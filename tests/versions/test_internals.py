"""What Coterie relies on inside transformers, one test each: a release that moves something is told what it moved.

None of this is promised by transformers. When a test fails with a new release, the message names the place in
``coterie`` that has to follow.
"""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

RELEASE = f"transformers {transformers.__version__}"


def found(module: str, name: str, follower: str):
    """Something inside transformers by name, or a failure that says what moved and who has to follow."""
    try:
        thing = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{RELEASE} has moved {module}.{name} ({error}); {follower} has to follow.")
    return thing


SIGNATURES = [
    ("core_model_loading", "rename_source_key", ("source_key", "weight_renamings", "weight_converters"), "hf.keymap"),
    ("core_model_loading", "WeightConverter.add_tensor", ("target_key", "source_key", "source_pattern", "future"),
     "hf.decoding"),
    ("core_model_loading", "WeightConverter.convert", ("layer_name", "model", "config"), "hf.decoding"),
    ("core_model_loading", "WeightRenaming", ("source_patterns", "target_patterns"), "hf.keymap"),
    ("core_model_loading", "MergeModulelist", ("dim",), "hf.decoding"),
    ("core_model_loading", "Concatenate", ("dim",), "hf.decoding"),
    ("core_model_loading", "dot_natural_key", ("s",), "hf.keymap"),
    ("conversion_mapping", "get_model_conversion_mapping", ("model",), "hf.keymap"),
    ("conversion_mapping", "get_checkpoint_conversion_mapping", ("model_type",), "hf.keymap"),
    ("modeling_utils", "PreTrainedModel._adjust_missing_and_unexpected_keys", ("loading_info",), "hf.keymap"),
    ("modeling_utils", "PreTrainedModel._from_config", ("config", "kwargs"), "hf.skeleton"),
    ("quantizers.base", "HfQuantizer._process_model_before_weight_loading", ("model",), "integration.quantizer"),
    ("quantizers.auto", "register_quantizer", ("name",), "integration.quantizer"),
    ("quantizers.auto", "register_quantization_config", ("method",), "integration.quantizer"),
    ("models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil", (), "engine.processors"),
    ("models.qwen3_omni_moe.processing_qwen3_omni_moe", "_get_feat_extract_output_lengths", ("input_lengths",),
     "engine.placeholders"),
    ("utils.quantization_config", "QuantizationConfigMixin", (), "integration.quantizer"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "parameters", "follower"), SIGNATURES, ids=[row[1] for row in SIGNATURES])
def test_a_place_and_its_parameters(module, name, parameters, follower):
    thing = found(f"transformers.{module}", name, f"coterie.{follower}")
    lacking = set(parameters) - set(inspect.signature(thing).parameters)
    assert not lacking, (
        f"{RELEASE} has changed the parameters of {name}: no {lacking}; coterie.{follower} has to follow."
    )


@pytest.fixture(scope="module")
def skeleton() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        return Qwen3MoeForCausalLM._from_config(config, dtype=torch.float32)


def test_experts_classes_are_decorated(skeleton):
    """hf.banks finds them by these attributes, hf.experts calls the forward below the dispatch."""
    module = skeleton.model.layers[0].mlp.experts
    for name in ("has_gate", "has_bias", "is_transposed"):
        assert hasattr(module, name), f"{RELEASE} no longer sets {name} on experts; coterie.hf.banks has to follow."
    forward = getattr(type(module).forward, "__wrapped__", None)
    assert forward is not None, f"{RELEASE} hides the class's own forward; coterie.hf.experts has to follow."
    assert list(inspect.signature(forward).parameters) == ["self", "hidden_states", "top_k_index", "top_k_weights"], (
        f"{RELEASE} has changed what experts are called with; coterie.integration.bank has to follow."
    )
    assert callable(getattr(module, "_apply_gate", None)), f"{RELEASE}: no _apply_gate; coterie.hf.experts."


def test_the_common_forward_is_still_common():
    """hf.experts compares classes with Qwen3-MoE's; were it alone, every other model would become slow."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    sources = [inspect.getsource(cls.forward.__wrapped__) for cls in (Qwen3MoeExperts, MixtralExperts)]
    assert sources[0] == sources[1], f"{RELEASE}: Mixtral's experts differ from Qwen3-MoE's; coterie.hf.experts."


def test_names_become_parameters(skeleton):
    """hf.keymap renames as the loader does, and reads the converter that made a name."""
    loading = found("transformers", "core_model_loading", "coterie.hf.keymap")
    transforms = found("transformers.conversion_mapping", "get_model_conversion_mapping", "coterie.hf.keymap")(skeleton)
    converters = [t for t in transforms if isinstance(t, loading.WeightConverter)]
    renamings = [t for t in transforms if isinstance(t, loading.WeightRenaming)]
    name = "model.layers.0.mlp.experts.3.gate_proj.weight"
    renamed, pattern = loading.rename_source_key(name, renamings, converters, "model", skeleton.state_dict())
    assert renamed == "model.layers.0.mlp.experts.gate_up_proj", (
        f"{RELEASE} names experts {renamed}; coterie.hf.keymap."
    )
    (converter,) = [c for c in converters if pattern in c.source_patterns]
    for attribute in ("source_patterns", "target_patterns", "operations"):
        assert hasattr(converter, attribute), f"{RELEASE}: converters have no {attribute}; coterie.hf.keymap."


def test_a_converter_converts_one_expert(skeleton):
    """hf.decoding feeds it the tensors of one expert and takes what it makes of them."""
    loading = found("transformers", "core_model_loading", "coterie.hf.decoding")
    make, merge, join = loading.WeightConverter, loading.MergeModulelist, loading.Concatenate
    converter = make(["a.*.gate", "a.*.up"], "a.gate_up", operations=[merge(dim=0), join(dim=1)])
    gate, up = torch.full((2, 3), 1.0), torch.full((2, 3), 2.0)
    for pattern, name, tensor in (("a.*.gate", "a.0.gate", gate), ("a.*.up", "a.0.up", up)):
        converter.add_tensor("a.gate_up", name, pattern, tensor)
    made = converter.convert("a.gate_up", model=skeleton, config=skeleton.config)["a.gate_up"]
    made = made[0] if isinstance(made, list) else made
    assert torch.equal(made, torch.cat([gate, up])[None]), f"{RELEASE} converts otherwise; coterie.hf.decoding."


def test_what_may_be_missing_is_told_by_the_model(skeleton):
    """hf.keymap leaves to transformers which names are ignored."""
    info = SimpleNamespace(missing_keys={"model.norm.weight"}, unexpected_keys={"odd.weight"})
    skeleton._adjust_missing_and_unexpected_keys(info)
    assert (info.missing_keys, info.unexpected_keys) == ({"model.norm.weight"}, {"odd.weight"}), (
        f"{RELEASE} adjusts missing and unexpected names otherwise; coterie.hf.keymap has to follow."
    )
    assert hasattr(skeleton, "base_model_prefix"), f"{RELEASE}: no base_model_prefix; coterie.hf.keymap."
    assert hasattr(skeleton, "all_tied_weights_keys"), f"{RELEASE}: no all_tied_weights_keys; coterie.hf.keymap."


def test_the_plug_in_sees_the_skeleton_before_weights(tmp_path, monkeypatch):
    """integration.quantizer takes experts out of a model on the meta device, and the loader then misses nothing."""
    from coterie.integration import register
    from coterie.integration.quantizer import StreamingConfig

    seen = []

    def attach(model):
        seen.append(model)
        module = model.model.layers[0].mlp.experts
        assert module.gate_up_proj.is_meta, f"{RELEASE} allocates experts first; coterie.integration.quantizer."
        for name in ("gate_up_proj", "down_proj"):
            del module._parameters[name]
            module.__dict__[name] = SimpleNamespace(_is_hf_initialized=True)
        module.__dict__["_is_hf_initialized"] = True

    register()
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    whole = Qwen3MoeForCausalLM(config)
    dense = {name: value for name, value in whole.state_dict().items() if ".experts." not in name}
    model, info = Qwen3MoeForCausalLM.from_pretrained(
        None, config=config, state_dict=dense, quantization_config=StreamingConfig(attach),
        experts_implementation="eager", output_loading_info=True,
    )  # fmt: skip
    assert seen == [model], f"{RELEASE} does not call the plug-in; coterie.integration.quantizer has to follow."
    assert not info["missing_keys"], f"{RELEASE} misses {info['missing_keys']}; coterie.engine.loader has to follow."
    assert torch.equal(model.model.norm.weight, whole.model.norm.weight), f"{RELEASE}: dense weights were not taken."


def test_the_marks_of_a_quantised_model_are_where_they_were():
    """integration.quantizer removes them, because some models compute otherwise when they are set."""
    source = inspect.getsource(importlib.import_module("transformers.models.jamba.modeling_jamba"))
    base = inspect.getsource(importlib.import_module("transformers.quantizers.base"))
    base += inspect.getsource(importlib.import_module("transformers.modeling_utils"))
    assert "_is_quantized" in source + base, (
        f"{RELEASE} marks quantised models otherwise: coterie.integration.quantizer."
    )


def test_no_release_outside_of_the_range_is_tested():
    (requirement,) = [
        parsed for text in metadata.requires("coterie") or [] if (parsed := Requirement(text)).name == "transformers"
    ]
    assert requirement.specifier.contains(transformers.__version__)


def test_the_oldest_release_in_ci_is_the_oldest_allowed():
    root = Path(__file__).resolve().parents[2]
    pinned = dict(
        line.split("==") for line in (root / "requirements-oldest.lock").read_text().splitlines() if "==" in line
    )
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (text,) = [text for text in project["dependencies"] if text.startswith("transformers")]
    lower = [one.version for one in Requirement(text).specifier if one.operator == ">="]
    assert [Version(pinned["transformers"])] == [Version(one) for one in lower]
