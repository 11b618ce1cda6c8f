"""Which part of a model each weight outside its experts belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.hf.banks import find_banks
from coterie.hf.dense_parts import DenseParts
from coterie.hf.skeleton import build_skeleton
from coterie.spec.dense_parts import DENSE_PARTS
from zoo.matrix import MATRIX

TEXT = {"attention", "head"}
# Name in the matrix → the parts that have linear layers.
PARTS = {
    "qwen3_moe": TEXT,
    "qwen2_moe": {*TEXT, "shared_experts"},
    "deepseek_v3": {*TEXT, "shared_experts", "mlp"},
    "granitemoehybrid": {*TEXT, "shared_experts"},
    "jamba": {*TEXT, "mlp"},
    "longcat_flash": {*TEXT, "shared_experts"},
    "nemotron_h": {*TEXT, "shared_experts"},
    "nllb_moe": {"attention", "mlp"},
    "qwen3_vl_moe": {*TEXT, "encoders"},
    "gemma4": {"attention", "shared_experts", "mlp", "encoders"},
    "qwen3_omni_thinker": {*TEXT, "encoders"},
    "qwen3_omni": {*TEXT, "encoders", "talker", "predictor", "vocoder"},
}
# Beginnings or ends of names of parameters → their part.
WEIGHTS = {
    "deepseek_v3": {
        "model.layers.0.mlp.up_proj.weight": "mlp",
        "model.layers.1.mlp.shared_experts.up_proj.weight": "shared_experts",
        "model.layers.1.mlp.gate.weight": "routers",
        "model.layers.1.self_attn.kv_b_proj.weight": "attention",
        "model.layers.1.input_layernorm.weight": "norms",
        "model.embed_tokens.weight": "embeddings",
        "lm_head.weight": "head",
    },
    "jamba": {".mamba.in_proj.weight": "attention", ".mamba.conv1d.weight": "attention"},
    "qwen3_omni": {
        ".audio_tower.layers.0.self_attn.q_proj.weight": "encoders",
        ".visual.merger.mlp.0.weight": "encoders",
        "thinker.lm_head.weight": "head",
        "talker.codec_head.weight": "talker",
        "talker.model.layers.0.mlp.gate.weight": "talker",
        "talker.model.layers.0.mlp.shared_expert.up_proj.weight": "talker",
        "talker.code_predictor.lm_head.0.weight": "predictor",
        "talker.code_predictor.model.codec_embedding.0.weight": "predictor",
        "code2wav.pre_transformer.layers.0.self_attn.q_proj.weight": "vocoder",
    },
}


def parts_of(name: str) -> dict[str, tuple[str, bool]]:
    """Name of each parameter outside experts → its part, and whether it is the weight of a linear layer."""
    model = build_skeleton(MATRIX[name].model_class, MATRIX[name].config(), torch.bfloat16)
    banks = find_banks(model)
    parts = DenseParts(model, banks)
    places = [place for bank in banks for place in (bank, *map(bank.at, bank.tied))]
    experts = {target for place in places for names in place.targets.values() for target in names}
    return {
        parameter: (
            parts.of(parameter),
            parameter.endswith(".weight") and isinstance(model.get_submodule(parameter[: -len(".weight")]), nn.Linear),
        )
        for parameter, _ in model.named_parameters()
        if parameter not in experts
    }


@pytest.mark.parametrize("name", sorted(PARTS))
def test_parts_go_by_structure(name: str) -> None:
    if reason := MATRIX[name].why_not:
        pytest.skip(reason)
    found = parts_of(name)
    assert {part for part, _ in found.values()} <= DENSE_PARTS.keys()
    assert {part for part, is_linear in found.values() if is_linear} - {"routers"} == PARTS[name]
    for end, part in WEIGHTS.get(name, {}).items():
        named = {found_part for parameter, (found_part, _) in found.items() if parameter.endswith(end)}
        assert named == {part}, end


def test_a_talker_alone_has_the_parts_that_it_has_in_the_whole() -> None:
    from transformers import Qwen3OmniMoeTalkerForConditionalGeneration

    config = MATRIX["qwen3_omni"].config().talker_config
    model = build_skeleton(Qwen3OmniMoeTalkerForConditionalGeneration, config, torch.bfloat16)
    parts = DenseParts(model, find_banks(model))
    whole = parts_of("qwen3_omni")
    for parameter, _ in model.named_parameters():
        if ".experts." not in parameter:
            assert parts.of(parameter) == whole[f"talker.{parameter}"][0]
