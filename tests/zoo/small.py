"""Tiny configurations of any class: every size that a configuration has a name for is made small."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from zoo.sizes import TEXT, TOKENS, VOCABULARY

_LAYERS = 2
_EXPERTS = 8

SMALL_TEXT: dict[str, Any] = TEXT | {
    "head_dim": 16,
    # experts, under all the names that they have
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "moe_num_experts": _EXPERTS,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 48,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_topk": 3,
    "moe_k": 3,
    "top_k_experts": 3,
    "n_group": 4,
    "topk_group": 2,
    # which layers are dense
    "num_dense_layers": 0,
    "first_k_dense_replace": 0,
    "mlp_layer_types": ["sparse"] * _LAYERS,
    # attention
    "sliding_window": 8,
    "sliding_window_size": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "index_topk": 6,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # other mixers
    "linear_head_dim": 16,
    "linear_num_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 3,
}
"""Values by option name; a configuration takes those that it has."""

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
"""Latent attention has keys and values for every head; its ``head_dim`` is that of the rotary part."""

SMALL_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "text_hidden_size": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "depth": 1,
    "num_hidden_layers": 1,
    "encoder_layers": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": 16,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
}
"""The same for the parts that see and hear."""

_SPECIAL_TOKENS = {
    "image_token_id": TOKENS["image"],
    "image_token_index": TOKENS["image"],
    "video_token_id": TOKENS["video"],
    "video_token_index": TOKENS["video"],
    "audio_token_id": TOKENS["audio"],
    "image_start_token_id": TOKENS["vision_start"],
    "image_end_token_id": TOKENS["vision_end"],
    "video_start_token_id": TOKENS["vision_start"],
    "video_end_token_id": TOKENS["vision_end"],
    "vision_start_token_id": TOKENS["vision_start"],
    "vision_end_token_id": TOKENS["vision_end"],
    "boi_token_id": TOKENS["vision_start"],
    "eoi_token_id": TOKENS["vision_end"],
}


def small_config(class_name: str, /, **options: Any) -> PreTrainedConfig:
    """A small configuration of a class of transformers.

    Args:
        class_name: Its name.
        **options: What is to differ; a dictionary for a part (``text_config``, ``vision_config``) is merged into it.
    """
    return _small(getattr(transformers, class_name), options, tower=False)


def _small(cls: type[PreTrainedConfig], options: dict[str, Any], *, tower: bool) -> PreTrainedConfig:
    known = _options_of(cls)
    parts = {}
    for name, part in cls.sub_configs.items():
        wanted = options.get(name, {})
        if wanted is not None:
            if part is AutoConfig:
                part = CONFIG_MAPPING[wanted.get("model_type") or f"{cls.model_type}_{name.removesuffix('_config')}"]
            parts[name] = _small(part, wanted, tower=tower or name != "text_config")
    sizes = SMALL_TOWER if tower else SMALL_TEXT | _SPECIAL_TOKENS
    if "kv_lora_rank" in known and not tower:
        sizes = sizes | _LATENT
    values = {name: value for name, value in sizes.items() if name in known}
    rest = {name: value for name, value in options.items() if name not in parts and name != "model_type"}
    config: PreTrainedConfig = cls(**values | rest | parts)
    return config


def _options_of(cls: type[PreTrainedConfig]) -> set[str]:
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)}
    return set(inspect.signature(cls.__init__).parameters)
