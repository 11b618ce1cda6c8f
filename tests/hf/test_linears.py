"""Which weights outside experts are those of linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.checkpoint import Checkpoint
from coterie.hf.linears import LinearWeight, linear_weights
from zoo import ZOO

NAMES = sorted(name for name in ZOO if not ZOO[name].why_not)


def weights(directory, component: str | None = None) -> tuple[Checkpoint, dict[str, LinearWeight]]:
    checkpoint = Checkpoint.open(directory, component=component)
    return checkpoint, linear_weights(checkpoint.skeleton, checkpoint.keymap)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_linear_layers_and_no_router_is_among_them(name: str, zoo_checkpoint) -> None:
    checkpoint, found = weights(zoo_checkpoint(name, torch.float32))
    assert found
    for weight, facts in found.items():
        path, _, parameter = checkpoint.keymap.dense[weight].rpartition(".")
        module = checkpoint.skeleton.get_submodule(path)
        assert (type(module), parameter) == (nn.Linear, "weight")
        assert checkpoint.tensors[weight].shape == facts.shape == (module.out_features, module.in_features)
    routers = {weight for names in checkpoint.router_names().values() for weight in names}
    assert not routers & found.keys()
    assert "lm_head.weight" in found or name in ("qwen3_omni", "lfm2_moe", "qwen3_vl_moe") or _is_tied(checkpoint)


def _is_tied(checkpoint: Checkpoint) -> bool:
    return bool(getattr(checkpoint.skeleton, "all_tied_weights_keys", None))


def test_gates_of_shared_experts_stay_and_shared_experts_do_not(zoo_checkpoint) -> None:
    _, found = weights(zoo_checkpoint("qwen2_moe", torch.float32))
    assert not [name for name in found if name.endswith("shared_expert_gate.weight")]
    assert [name for name in found if name.endswith("shared_expert.gate_proj.weight")]


def test_what_makes_sound_of_codes_stays_and_what_writes_them_does_not(zoo_checkpoint) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.float32)
    _, whole = weights(directory)
    _, talker = weights(directory, "talker")
    for found in (whole, talker):
        assert not [name for name in found if "code2wav" in name]
        predictor = {weight.part for name, weight in found.items() if "code_predictor" in name}
        assert predictor == {"predictor"}
        assert [name for name in found if name.startswith("talker.model.layers.0.self_attn")]
    assert [name for name in whole if "visual" in name]
    assert [name for name in whole if "audio_tower" in name]
    assert not [name for name in talker if not name.startswith("talker.")]


def test_a_head_that_is_the_embedding_stays(zoo_checkpoint, tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(zoo_checkpoint("qwen3_moe", torch.float32))
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint, found = weights(tmp_path)
    assert _is_tied(checkpoint)
    assert not [name for name in found if "lm_head" in name or "embed" in name]
    assert [name for name in found if "q_proj" in name]
