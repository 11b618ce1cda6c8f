"""The whole matrix: a tiny model of every experts class of transformers, beside the models of the zoo.

A model that takes more than text is there as a whole and, where transformers has a class for it, as its text part
alone: the two have different names in the checkpoint. Three experts per token, because of two addends the order does
not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from zoo.families import ZOO, ZooModel
from zoo.small import small_config
from zoo.undecorated import UNDECORATED

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"layer_types": ["mamba", "attention"]}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

_TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "afmoe": ("AfmoeForCausalLM", "AfmoeConfig", _SLIDING),
    "aria_text": ("AriaTextForCausalLM", "AriaTextConfig", {"intermediate_size": 32}),
    "axk1": ("AXK1ForCausalLM", "AXK1Config", {}),
    "axk2": ("AXK2ForCausalLM", "AXK2Config", {}),
    "bailing_hybrid": ("BailingHybridForCausalLM", "BailingHybridConfig", _HYBRID | {"head_dim": 16}),
    "beam": ("BeamForCausalLM", "BeamConfig", {}),
    "cohere2_moe": (
        "Cohere2MoeForCausalLM",
        "Cohere2MoeConfig",
        _SLIDING | {"intermediate_size": 32, "logit_scale": 1.0},
    ),
    "deepseek_v32": ("DeepseekV32ForCausalLM", "DeepseekV32Config", {}),
    "deepseek_v4": (
        "DeepseekV4ForCausalLM",
        "DeepseekV4Config",
        {"mlp_layer_types": ["hash_moe", "moe"], "num_key_value_heads": 1, "head_dim": 16},
    ),
    "dots1": ("Dots1ForCausalLM", "Dots1Config", {}),
    "dots3_note_text": ("Dots3NoteForCausalLM", "Dots3NoteTextConfig", {}),
    "exaone_moe": ("ExaoneMoeForCausalLM", "ExaoneMoeConfig", {}),
    "flex_olmo": ("FlexOlmoForCausalLM", "FlexOlmoConfig", {"intermediate_size": 32}),
    "flint": ("FlintForCausalLM", "FlintConfig", {"mlp_only_layers": []}),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _SLIDING | {"enable_moe_block": True, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
    ),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", "Glm4MoeLiteConfig", {}),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", "GlmMoeDsaConfig", {}),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig", {"intermediate_size": 32}),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        _MAMBA | {"intermediate_size": 32, "mamba_n_heads": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", {"intermediate_size": 32}),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Config", {"intermediate_size": 32}),
    "hy_v3": ("HYV3ForCausalLM", "HYV3Config", {}),
    "hy_v4": ("HYV4ForCausalLM", "HYV4Config", {}),
    "inkling_text": (
        "InklingForCausalLM",
        "InklingTextConfig",
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "rel_extent": 32,
            "d_rel": 4,
            "logits_mup_width_multiplier": 1.0,
        },
    ),
    "inkling2_text": (
        "Inkling2ForCausalLM",
        "Inkling2TextConfig",
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "rel_extent": 32,
            "d_rel": 4,
            "unpadded_vocab_size": 128,
            "n_layers_per_attn_res_block": 1,
        },
    ),
    "inkling2_loop_text": (
        "Inkling2LoopForCausalLM",
        "Inkling2LoopTextConfig",
        {
            "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
            "num_hidden_layers": 3,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "rel_extent": 32,
            "d_rel": 4,
            "unpadded_vocab_size": 128,
            "n_layers_per_attn_res_block": 1,
            "loop_layer_index_start": 1,
            "loop_layer_index_end": 2,
            "loop_num_passes": 3,
            "loop_gate_rank": 8,
        },
    ),
    "kimi_linear": ("KimiLinearForCausalLM", "KimiLinearConfig", _HYBRID | {"q_lora_rank": None}),
    "kolibri1": ("Kolibri1ForCausalLM", "Kolibri1Config", {}),
    "lara_mini": (
        "LaraMiniForCausalLM",
        "LaraMiniConfig",
        {
            "layer_types": ["linear_attention", "sliding_attention", "full_attention"],
            "num_hidden_layers": 3,
            "tie_word_embeddings": False,
        },
    ),
    "laguna": ("LagunaForCausalLM", "LagunaConfig", _SLIDING),
    "mellum": ("MellumForCausalLM", "MellumConfig", _SLIDING),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", "MiMoV2FlashConfig", {}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", "MiniMaxM2Config", {"intermediate_size": 32}),
    "minimax_m3_vl_text": ("MiniMaxM3VLForCausalLM", "MiniMaxM3VLTextConfig", {"intermediate_size": 32}),
    "mistral4": ("Mistral4ForCausalLM", "Mistral4Config", {}),
    "nemotron_h": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        {
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "num_hidden_layers": 4,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", _HYBRID),
    "qwen4_exp_text": (
        "Qwen4ExpForCausalLM",
        "Qwen4ExpTextConfig",
        _HYBRID
        | {
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 6,
            "indexer_compress_ratio": 2,
        },
    ),
    "sarvam_mla": ("DeepseekV3ForCausalLM", "SarvamMLAConfig", {}),
    "sarvam_moe": ("Glm4MoeForCausalLM", "SarvamMoEConfig", {}),
    "solar_open": ("SolarOpenForCausalLM", "SolarOpenConfig", {}),
    "zaya": ("ZayaForCausalLM", "ZayaConfig", {"num_experts_per_tok": 1, "router_hidden_size": 32}),
}
"""Causal language models: class, class of the configuration, what differs from the usual small sizes."""

_SAM = {
    "num_hidden_layers": 1,
    "output_channels": 16,
    "downsample_channels": [16, 32],
    "mlp_dim": 48,
    "window_size": 2,
    "global_attn_indexes": [0],
}

_WHOLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "aria": (
        "AriaForConditionalGeneration",
        "AriaConfig",
        {
            "text_config": _TEXT["aria_text"][2],
            "vision_config": {"model_type": "idefics3_vision"},
            "projector_patch_to_query_dict": {"16": 4},
        },
    ),
    "deepseek_ocr2": (
        "DeepseekOcr2ForConditionalGeneration",
        "DeepseekOcr2Config",
        {"vision_config": {"sam_config": _SAM, "encoder_config": {}}},
    ),
    "dots3_note": (
        "Dots3NoteForConditionalGeneration",
        "Dots3NoteConfig",
        {
            "vision_config": {
                "mlp_layer_types": ["sparse"],
                "adapter_in_dim": 32,
                "adapter_out_dim": 64,
                "pyramid_num_routed": [4],
            },
            "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 64, "downsample_hidden_size": 8},
        },
    ),
    "ernie4_5_vl_moe": (
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Ernie4_5_VLMoeConfig",
        {
            "text_config": {
                "moe_intermediate_size": [32, 16],
                "mlp_layer_types": ["dense", "sparse"],
                "rope_parameters": _MROPE | {"mrope_section": [3, 3, 2]},
            }
        },
    ),
    "gemma4": (
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        {
            "text_config": _TEXT["gemma4_text"][2],
            "vision_config": {"position_embedding_size": 16},
            "audio_config": None,
        },
    ),
    "glm4v_moe": (
        "Glm4vMoeForConditionalGeneration",
        "Glm4vMoeConfig",
        {"text_config": {"rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}}},
    ),
    "glm5_next": (
        "Glm5NextForConditionalGeneration",
        "Glm5NextConfig",
        {
            "text_config": {
                "index_kpool": 2,
                "qk_rope_head_dim": 0,
                "head_dim": 0,
                "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": {"projection_intermediate_size": 48},
        },
    ),
    "hy_v4_vl": (
        "HYV4VLForConditionalGeneration",
        "HYV4VLConfig",
        {
            "text_config": {"rope_parameters": _MROPE | {"mrope_section": [2, 1, 1]}},
            "vision_config": {"max_image_size": 16},
        },
    ),
    "inkling": (
        "InklingForConditionalGeneration",
        "InklingConfig",
        {
            "text_config": _TEXT["inkling_text"][2],
            # as many layers as it has scales: with fewer transformers needs scipy
            "vision_config": {"num_hidden_layers": 4, "temporal_patch_size": 2},
            "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 16},
        },
    ),
    "inkling2": (
        "Inkling2ForConditionalGeneration",
        "Inkling2Config",
        {
            "text_config": _TEXT["inkling2_text"][2],
            "vision_config": {"projection_hidden_dim": 48, "posemb_grid_size": 4},
        },
    ),
    "inkling2_loop": (
        "Inkling2LoopForConditionalGeneration",
        "Inkling2LoopConfig",
        {
            "text_config": _TEXT["inkling2_loop_text"][2],
            "vision_config": {
                "model_type": "inkling2_vision",
                "projection_hidden_dim": 48,
                "posemb_grid_size": 4,
            },
        },
    ),
    "minimax_m3_vl": (
        "MiniMaxM3SparseForConditionalGeneration",
        "MiniMaxM3VLConfig",
        {"text_config": _TEXT["minimax_m3_vl_text"][2], "projector_hidden_size": 48},
    ),
    "mistral_large4": (
        "MistralLarge4ForConditionalGeneration",
        "MistralLarge4Config",
        {"vision_config": {"model_type": "pixtral"}},
    ),
    "muse_spark": (
        "MuseSparkForConditionalGeneration",
        "MuseSparkConfig",
        {
            "text_config": {"moe_hidden_size": 32, "output_multiplier": 1.0},
            "audio_config": {"patch_sizes": [4], "hidden_sizes": [16], "depths": [1]},
            "out_hidden_size": 64,
            "projector_hidden_size": 48,
        },
    ),
    "nemotron_h_omni": (
        "NemotronH_Omni_Reasoning_V3",
        "NemotronH_Omni_Reasoning_V3_Config",
        {
            "text_config": _TEXT["nemotron_h"][2] | {"model_type": "nemotron_h"},
            "vision_config": {"model_type": "radio", "video_temporal_patch_size": 2, "max_img_size": 64},
            "audio_config": {
                "model_type": "parakeet_encoder",
                "attention_bias": False,
                "scale_input": False,
                "num_mel_bins": 16,
                "subsampling_conv_channels": 8,
                "projection_hidden_size": 48,
                "projection_bias": False,
            },
            "vision_hidden_size": 32,
            "projector_hidden_size": 48,
        },
    ),
    "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", {"text_config": _HYBRID}),
    "qwen4_exp": (
        "Qwen4ExpForConditionalGeneration",
        "Qwen4ExpConfig",
        {"text_config": _TEXT["qwen4_exp_text"][2]},
    ),
    "unlimited_ocr": (
        "UnlimitedOcrForConditionalGeneration",
        "UnlimitedOcrConfig",
        {"vision_config": {"sam_config": _SAM, "encoder_config": {}}},
    ),
}
"""Models that see or hear too, with their towers."""

_NOT_CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "diffusion_gemma": (
        "DiffusionGemmaForBlockDiffusion",
        "DiffusionGemmaConfig",
        {"text_config": _SLIDING, "vision_config": {"model_type": "gemma4_vision"}, "canvas_length": 8},
    ),
    "openai_privacy_filter": (
        "OpenAIPrivacyFilterForTokenClassification",
        "OpenAIPrivacyFilterConfig",
        {"intermediate_size": 48},
    ),
}
"""Models that do not write one token after the other."""


_SEEING_EXPERTS = {"dots3_note", "ernie4_5_vl_moe"}


def _variant(name: str, model_class: str, config_class: str, options: dict[str, Any], **facts: Any) -> ZooModel:
    config = partial(small_config, config_class, **options)
    return ZooModel(name=name, class_name=model_class, config_name=config_class, config=config, **facts)


_VARIANTS: dict[str, ZooModel] = {
    name: _variant(
        name,
        *row,
        modalities=("text", "image") if name in _SEEING_EXPERTS else ("text",),
        generates=name != "openai_privacy_filter",
        sees_with_experts=name in _SEEING_EXPERTS,
    )
    for table in (_TEXT, _WHOLE, _NOT_CAUSAL)
    for name, row in table.items()
}


def _with_three_experts(model: ZooModel) -> ZooModel:
    """A model of the zoo in which the order of sums shows."""
    return replace(model, config=partial(_three_experts, model.config))


def _three_experts(make: Callable[[], PreTrainedConfig]) -> PreTrainedConfig:
    config = make()
    parts = [config]
    for part in parts:
        parts += [getattr(part, name) for name in part.sub_configs]
        for name in ("num_experts_per_tok", "moe_k"):
            if getattr(part, name, None) == 2:
                setattr(part, name, 3)
    return config


# Its router can do no other number than two.
_TWO_EXPERTS = {"phimoe"}

MATRIX: dict[str, ZooModel] = (
    {name: model if name in _TWO_EXPERTS else _with_three_experts(model) for name, model in ZOO.items()}
    | _VARIANTS
    | UNDECORATED
)
"""Every model of the matrix by name."""
