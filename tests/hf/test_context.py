"""What a prefill keeps in memory depends on the class: which attention it can fuse, which logits it makes."""

import pytest
import torch
import transformers

from coterie.hf.context import context_shape, text_configs
from zoo import ZOO


def shape_of(config: str, model: str, **settings: int):
    given = getattr(transformers, config)(**settings)
    return context_shape(given, torch.bfloat16, getattr(transformers, model))


@pytest.mark.parametrize(
    ("config", "model", "heads"),
    [
        ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", 0),
        ("GptOssConfig", "GptOssForCausalLM", 64),
        ("DeepseekV3Config", "DeepseekV3ForCausalLM", 128),
    ],
)
def test_scores_of_heads_that_cannot_be_fused(config, model, heads) -> None:
    assert shape_of(config, model).score_heads == heads


def test_latent_attention_of_one_width_is_fused() -> None:
    widths = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128}
    assert shape_of("DeepseekV3Config", "DeepseekV3ForCausalLM", **widths).score_heads == 0


def test_an_omni_model_makes_the_logits_of_every_token() -> None:
    assert shape_of("Qwen3OmniMoeThinkerConfig", "Qwen3OmniMoeThinkerForConditionalGeneration").all_logits
    assert not shape_of("Qwen3MoeConfig", "Qwen3MoeForCausalLM").all_logits


def test_every_part_with_a_cache_counts() -> None:
    whole = ZOO["qwen3_omni"].config()
    talker = [whole.talker_config.text_config, whole.talker_config.code_predictor_config]
    assert text_configs(whole) == [whole.thinker_config.text_config, *talker]
    assert text_configs(whole.thinker_config) == [whole.thinker_config.text_config]
    assert text_configs(whole.talker_config) == talker
