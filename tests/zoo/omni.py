"""Configurations of the multimodal models."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerConfig, Qwen3VLMoeConfig

from zoo.sizes import TEXT, TOKENS

_EXPERTS = {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
_TEXT = TEXT | _EXPERTS | {"rope_parameters": _ROPE}
_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
}
# A window of 50 frames is what older releases of transformers take for granted.
_AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "output_dim": 64,
    "n_window": 50,
    "downsample_hidden_size": 8,
    "max_source_positions": 64,
}
_PLACEHOLDERS = {
    "audio_token_id": TOKENS["audio"],
    "image_token_id": TOKENS["image"],
    "video_token_id": TOKENS["video"],
    "audio_start_token_id": TOKENS["audio_start"],
    "vision_start_token_id": TOKENS["vision_start"],
}
_CODES = 64
# Omni's generate() never lets the talker say one of the last 1024 ids of its vocabulary, except its end.
_TALKER_VOCABULARY = 1024 + _CODES
_CODEC = {
    "codec_eos_token_id": _CODES,
    "codec_pad_id": _CODES + 1,
    "codec_bos_id": _CODES + 2,
    "codec_nothink_id": _CODES + 3,
    "codec_think_bos_id": _CODES + 4,
    "codec_think_eos_id": _CODES + 5,
}
_TALKER_SIZES = {"hidden_size": 32, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}


def qwen3_vl_config() -> Qwen3VLMoeConfig:
    return Qwen3VLMoeConfig(
        # Released checkpoints lie transposed, which transformers tells by the shapes: they must not be square.
        text_config=_TEXT | {"moe_intermediate_size": 48},
        vision_config=_VISION,
        image_token_id=TOKENS["image"],
        video_token_id=TOKENS["video"],
        vision_start_token_id=TOKENS["vision_start"],
        vision_end_token_id=TOKENS["vision_end"],
    )


def thinker_config() -> Qwen3OmniMoeThinkerConfig:
    return Qwen3OmniMoeThinkerConfig(**_thinker())


def omni_config(*, whole_groups: bool = False) -> Qwen3OmniMoeConfig:
    """Thinker, talker and code2wav: text, image and audio in, text and speech out.

    Args:
        whole_groups: Whether each row of the talker's and the code predictor's matrices has whole groups, so that the
            native library computes them in every scheme.
    """
    return Qwen3OmniMoeConfig(
        thinker_config=_thinker(),
        talker_config=_talker(whole_groups=whole_groups),
        code2wav_config=_code2wav(),
        im_start_token_id=TOKENS["im_start"],
        im_end_token_id=TOKENS["im_end"],
        tts_pad_token_id=TOKENS["tts_pad"],
        tts_bos_token_id=TOKENS["tts_bos"],
        tts_eos_token_id=TOKENS["tts_eos"],
        system_token_id=TOKENS["system"],
        user_token_id=TOKENS["user"],
        assistant_token_id=TOKENS["assistant"],
    )


def _thinker() -> dict[str, Any]:
    parts = {"text_config": _TEXT, "vision_config": _VISION, "audio_config": _AUDIO}
    return parts | _PLACEHOLDERS | {"user_token_id": TOKENS["user"]}


def _talker(*, whole_groups: bool) -> dict[str, Any]:
    shared, inner = (32, 64) if whole_groups else (24, 48)
    text = _TEXT | _TALKER_SIZES | {"vocab_size": _TALKER_VOCABULARY, "shared_expert_intermediate_size": shared}
    predictor = TEXT | _TALKER_SIZES | {"vocab_size": _CODES, "num_code_groups": 4, "intermediate_size": inner}
    del predictor["num_experts_per_tok"]
    return (
        {"text_config": text, "code_predictor_config": predictor}
        | _PLACEHOLDERS
        | _CODEC
        | {
            "num_code_groups": 4,
            "thinker_hidden_size": 64,
            "accept_hidden_layer": 1,
            "spatial_merge_size": 2,
            "speaker_id": {"ethan": _CODES + 6, "chelsie": _CODES + 7},
        }
    )


def _code2wav() -> dict[str, Any]:
    return {
        "codebook_size": _CODES,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_quantizers": 4,
        "sliding_window": 8,
        "upsample_rates": [4, 3],
        "upsampling_ratios": [2],
        "decoder_dim": 16,
    }
