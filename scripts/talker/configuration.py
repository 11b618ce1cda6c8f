"""The configuration of the whole model: the bundled thinker's as it is, a small talker, and a small vocoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import coterie
from talker.words import VOICES

THINKER = Path(coterie.__file__).parent / "bundled"
"""The bundled model, which becomes the thinker. Nothing of it is trained here."""

TARGET = THINKER.with_name("bundled-omni")
"""What belongs to the whole model beside its thinker."""

GROUPS, ENTRIES = 4, 64
"""Codebooks, and codes in each."""

# Special tokens that the thinker has seen nowhere, or not between words: it answers as if they were not there.
IM_START, USER, ASSISTANT = 1, 4, 2
AUDIO_START, AUDIO_PAD, AUDIO_END = 3, 5, 4
TTS_PAD, TTS_BOS, TTS_EOS = 9, 6, 7

OPEN_USER, OPEN_ASSISTANT = (IM_START, USER), (IM_START, ASSISTANT, AUDIO_END)
"""How a turn of the user begins, and one of the model: the last three tokens of a prompt."""

CODEC_EOS, CODEC_PAD, CODEC_BOS, CODEC_NOTHINK, CODEC_THINK_BOS, CODEC_THINK_EOS = range(ENTRIES, ENTRIES + 6)
FIRST_SPEAKER = CODEC_THINK_EOS + 1

READ_LAYER = 4
"""The thinker's layer whose hidden states the talker reads where there is sound."""

_SUPPRESSED = 1024
"""transformers never generates the last so many codes, but for the end: there have to be so many more."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>
{%- if message.role == 'assistant' -%} <|im_end|><|audio_end|> {%- else -%} <|audio_end|> {%- endif -%}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%} <|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'image' -%} <|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%} {{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%} <|im_start|><|im_end|><|audio_end|> {%- endif -%}
"""
"""Turns, as the talker tells them apart. Blanks around tags are no part of the prompt."""


def whole_config() -> dict[str, Any]:
    """What config.json says."""
    thinker = json.loads((THINKER / "config.json").read_text(encoding="utf-8"))
    del thinker["architectures"], thinker["transformers_version"]
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "dtype": "bfloat16",
        "enable_audio_output": True,
        "im_start_token_id": IM_START,
        "im_end_token_id": 2,
        "system_token_id": AUDIO_START,
        "user_token_id": USER,
        "assistant_token_id": ASSISTANT,
        "tts_pad_token_id": TTS_PAD,
        "tts_bos_token_id": TTS_BOS,
        "tts_eos_token_id": TTS_EOS,
        "thinker_config": thinker,
        "talker_config": _talker(thinker),
        "code2wav_config": _code2wav(),
    }


def _talker(thinker: dict[str, Any]) -> dict[str, Any]:
    attention = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return {
        "accept_hidden_layer": READ_LAYER,
        "thinker_hidden_size": thinker["text_config"]["hidden_size"],
        "num_code_groups": GROUPS,
        "codec_eos_token_id": CODEC_EOS,
        "codec_pad_id": CODEC_PAD,
        "codec_bos_id": CODEC_BOS,
        "codec_nothink_id": CODEC_NOTHINK,
        "codec_think_bos_id": CODEC_THINK_BOS,
        "codec_think_eos_id": CODEC_THINK_EOS,
        "speaker_id": {name: FIRST_SPEAKER + number for number, name in enumerate(VOICES)},
        "audio_token_id": AUDIO_PAD,
        "audio_start_token_id": AUDIO_START,
        "image_token_id": thinker["image_token_id"],
        "video_token_id": thinker["video_token_id"],
        "vision_start_token_id": thinker["vision_start_token_id"],
        "spatial_merge_size": thinker["vision_config"]["spatial_merge_size"],
        "text_config": {
            **attention,
            "vocab_size": FIRST_SPEAKER + len(VOICES) + _SUPPRESSED,
            "num_hidden_layers": 2,
            "intermediate_size": 256,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "code_predictor_config": {
            **attention,
            "vocab_size": ENTRIES,
            "num_code_groups": GROUPS,
            "num_hidden_layers": 1,
            "intermediate_size": 256,
            "max_position_embeddings": 64,
        },
    }


def _code2wav() -> dict[str, Any]:
    return {
        "codebook_size": ENTRIES,
        "num_quantizers": GROUPS,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "sliding_window": 72,
        "decoder_dim": 192,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
