"""Tiny models with random weights, one per router class that a whole model can be built around."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OMNI_TEXT = TEXT | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}


def qwen2_moe() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**TEXT, shared_expert_intermediate_size=16))


def qwen3_moe() -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, head_dim=8, norm_topk_prob=True))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    options = {k: v for k, v in TEXT.items() if k not in ("num_experts", "moe_intermediate_size")}
    return MixtralForCausalLM(MixtralConfig(**options, num_local_experts=8))


def olmoe() -> nn.Module:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**TEXT))


def qwen3_omni_thinker() -> nn.Module:
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    audio |= {"downsample_hidden_size": 4, "output_dim": 32, "num_mel_bins": 16}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3OmniMoeThinkerConfig(
        text_config=OMNI_TEXT, audio_config=audio, vision_config=vision, audio_token_id=1, image_token_id=2
    )
    return Qwen3OmniMoeThinkerForConditionalGeneration(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    maker.__name__: maker for maker in (qwen2_moe, qwen3_moe, mixtral, olmoe, qwen3_omni_thinker)
}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built = MODELS[request.param]().eval()
    built.set_experts_implementation("eager")
    for name, parameter in built.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            nn.init.normal_(parameter, std=0.5)  # spread the logits: routing must not hang on rounding
    return built
