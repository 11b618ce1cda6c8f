"""Configurations of whole omni models: that of the released Qwen3-Omni-30B-A3B, and a small one of the same kind."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullsize.model import FullSizeModel
from synthetic import Dimensions

RELEASED = "qwen3-omni-30b-a3b"
SMALL = "qwen3-omni-small"

CODES_AT_END = 1024
"""Ids at the end of the talker's vocabulary that are no codes; transformers lets it say none of them but its end."""

Config = dict[str, Any]

_RELEASED = Path(__file__).with_name("released.json")
_ROLES = {"system": "system_token_id", "user": "user_token_id", "assistant": "assistant_token_id"}
_FIRST_SPECIAL = 151643
_SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
    "<|audio_start|>": 151669,
    "<|audio_end|>": 151670,
    "<tts_pad>": 151671,
    "<tts_text_bos>": 151672,
    "<tts_text_eod>": 151673,
    "<|audio_pad|>": 151675,
}
"""Ids in the released tokenizer."""
_NEWLINE = 198

_HEADS: Config = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
_EXPERTS: Config = {"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_ROPE: Config = {"rope_parameters": {"mrope_section": [16, 8, 8]}}
_SMALL_VOCABULARY, _SMALL_SHIFT = 512, _FIRST_SPECIAL - 470
_SMALL: Config = {
    "system_token_id": 460,
    "user_token_id": 461,
    "assistant_token_id": 462,
    "thinker_config": {
        "user_token_id": 461,
        "text_config": _HEADS | _EXPERTS | _ROPE | {"vocab_size": _SMALL_VOCABULARY},
        "audio_config": {
            "d_model": 128,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 256,
            "encoder_layers": 2,
            "output_dim": 256,
            "downsample_hidden_size": 16,
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 128,
            # No multiple of 64, as in the released model.
            "intermediate_size": 208,
            "num_heads": 2,
            "out_hidden_size": 256,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
    },
    "talker_config": {
        "text_config": _HEADS | _EXPERTS | _ROPE | {"shared_expert_intermediate_size": 64},
        "code_predictor_config": _HEADS | {"intermediate_size": 128, "num_hidden_layers": 2},
        "accept_hidden_layer": 1,
        "thinker_hidden_size": 256,
    },
    "code2wav_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "decoder_dim": 96,
    },
}  # fmt: skip


def released_config() -> Config:
    """``config.json`` of the released dimensions."""
    config: Config = json.loads(_RELEASED.read_text(encoding="utf-8"))
    return config


def small_config() -> Config:
    """Every part of the released model, much smaller: a store of some MB."""
    config = _merged(released_config(), _SMALL)
    for holder in (config, config["thinker_config"], config["talker_config"]):
        for name, value in holder.items():
            if name.endswith("_token_id") and isinstance(value, int) and value >= _FIRST_SPECIAL:
                holder[name] = value - _SMALL_SHIFT
    return config


OMNI_SHAPES = {RELEASED: released_config, SMALL: small_config}
"""The configurations by name."""


def named_tokens(config: Config) -> dict[str, int]:
    """Text → id of the tokens that are no words: roles, ends, places of pictures and sounds, and the line feed."""
    small = config["thinker_config"]["text_config"]["vocab_size"] == _SMALL_VOCABULARY
    shift, newline = (_SMALL_SHIFT, 463) if small else (0, _NEWLINE)
    roles = {f"<|{name}|>": int(config[key]) for name, key in _ROLES.items()}
    return roles | {"\n": newline} | {text: number - shift for text, number in _SPECIAL.items()}


def thinker(config: Config) -> FullSizeModel:
    """The text part of the thinker; it says words only."""
    dimensions = _dimensions(config["thinker_config"]["text_config"])
    return FullSizeModel(dimensions, never_said=sorted(named_tokens(config).values()))


def talker(config: Config) -> FullSizeModel:
    """The talker without its shared experts; it says codes only, and never ends by itself."""
    dimensions = _dimensions(config["talker_config"]["text_config"])
    codes = dimensions.vocabulary - CODES_AT_END
    return FullSizeModel(dimensions, seed=1, never_said=range(codes, dimensions.vocabulary))


def _dimensions(text: Config) -> Dimensions:
    return replace(
        Dimensions(),
        layers=text["num_hidden_layers"],
        experts=text["num_experts"],
        top_k=text["num_experts_per_tok"],
        hidden=text["hidden_size"],
        expert_hidden=text["moe_intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        vocabulary=text["vocab_size"],
    )


def _merged(base: Config, changes: Config) -> Config:
    merged = copy.deepcopy(base)
    for name, value in changes.items():
        merged[name] = _merged(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged
