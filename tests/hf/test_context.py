"""What a prefill keeps in memory depends on the class: which attention it can fuse, which logits it makes."""

import pytest
import torch
import transformers

from coterie.errors import ContractError
from coterie.hf.context import context_shape, text_configs
from coterie.spec import LAST_POSITIONS
from harness.kept_cache import kept_cache
from zoo import MATRIX, ZOO


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


def test_logits_are_provided_for_as_generation_needs_them() -> None:
    thinker = shape_of("Qwen3OmniMoeThinkerConfig", "Qwen3OmniMoeThinkerForConditionalGeneration")
    assert (thinker.last_positions, thinker.all_logits) == (LAST_POSITIONS, 0)
    plain = shape_of("Qwen3MoeConfig", "Qwen3MoeForCausalLM")
    assert (plain.last_positions, plain.all_logits) == (1, 0)


def test_a_whole_omni_model_makes_all_logits_of_speech_alone() -> None:
    whole = ZOO["qwen3_omni"].config()
    shape = context_shape(whole, torch.bfloat16, ZOO["qwen3_omni"].model_class)
    assert shape.all_logits == whole.talker_config.text_config.vocab_size
    assert shape.last_positions == LAST_POSITIONS


def test_a_class_with_another_generate_makes_all_logits() -> None:
    variant = MATRIX["diffusion_gemma"]
    if reason := variant.why_not:
        pytest.skip(reason)
    config = variant.config()
    shape = context_shape(config, torch.bfloat16, variant.model_class)
    assert shape.all_logits == config.get_text_config(decoder=True).vocab_size


def test_every_part_that_keeps_a_whole_sequence_counts() -> None:
    whole = ZOO["qwen3_omni"].config()
    assert text_configs(whole) == [whole.thinker_config.text_config, whole.talker_config.text_config]
    assert text_configs(whole.thinker_config) == [whole.thinker_config.text_config]
    assert text_configs(whole.talker_config) == [whole.talker_config.text_config]


def test_what_speaks_counts_apart() -> None:
    one = ZOO["qwen3_omni"]
    config = one.config()
    shape = context_shape(config, torch.bfloat16, one.model_class)
    speech = shape.speech
    assert speech is not None
    text, talker = config.thinker_config.text_config, config.talker_config
    written = 2 * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim
    assert shape.text_kv_per_token == written
    assert shape.kv_per_copy == written // text.num_hidden_layers
    assert shape.text_kv_bytes(10) == 10 * written * 9 // 8 + 10 * shape.kv_per_copy
    # A code predictor begins anew with each frame: it has keys and values of a frame's codes, however long it speaks.
    predictor = talker.code_predictor_config
    kept = 2 * 4 * predictor.num_hidden_layers * 2 * predictor.num_key_value_heads * predictor.head_dim
    assert speech.predictor_kv == 2 * kept
    talkers = 2 * talker.text_config.num_hidden_layers * 2 * talker.text_config.num_key_value_heads * 16
    copied = 10 * talkers // talker.text_config.num_hidden_layers
    assert shape.speech_kv_bytes(10) == 10 * talkers * 9 // 8 + copied + 2 * kept
    assert shape.kv_bytes(10) == shape.text_kv_bytes(10) + shape.speech_kv_bytes(10)
    # Two hidden states of the thinker for each token.
    assert speech.kept_per_token == 2 * text.hidden_size * 2
    assert shape.text_bytes(10) > 10 * speech.kept_per_token
    # The widest stage has 32 channels × 2, 8 × 8 or 4 × 24 samples.
    assert speech.vocoder_per_frame == 12 * 96 * 2
    assert context_shape(config.thinker_config, torch.bfloat16, type(one.build().thinker)).speech is None


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_every_model_says_what_memory_depends_on(name) -> None:
    variant = MATRIX[name]
    if reason := variant.why_not:
        pytest.skip(reason)
    shape = context_shape(variant.config(), torch.bfloat16, variant.model_class)
    assert shape.hidden >= 16
    assert shape.vocabulary >= 64
    assert shape.kv_per_token > 2


def test_layers_that_are_passed_several_times_count_as_often() -> None:
    variant = MATRIX["inkling2_loop_text"]
    if reason := variant.why_not:
        pytest.skip(reason)
    once, looped = variant.config(), variant.config()
    once.loop_num_passes = 1
    of_one, of_three = (
        context_shape(config, torch.bfloat16, variant.model_class).kv_per_token for config in (once, looped)
    )
    assert of_three * 3 == of_one * 5


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_under_another_name_is_an_error(name, monkeypatch) -> None:
    config = ZOO["qwen3_moe"].config()
    del config.__dict__[name]
    monkeypatch.delattr(type(config), name, raising=False)
    with pytest.raises(ContractError, match=f"none of .*{name}"):
        context_shape(config, torch.bfloat16, ZOO["qwen3_moe"].model_class)


def test_layers_that_differ_are_added_up() -> None:
    variant = MATRIX["gemma4_text"]
    if reason := variant.why_not:
        pytest.skip(reason)
    config = variant.config()
    shape = context_shape(config, torch.bfloat16, variant.model_class)
    with torch.no_grad():
        cache = next(iter(kept_cache(variant.build()(torch.tensor([[3, 4, 5]]), use_cache=True)).values()))
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    needed = kept // 3 * torch.bfloat16.itemsize
    if hasattr(config, "per_layer_config"):
        assert shape.kv_per_token == needed
    else:  # as if all layers were as wide as the widest
        assert needed <= shape.kv_per_token <= needed * 2
