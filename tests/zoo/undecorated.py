"""Models whose experts classes transformers does not decorate: each class computes in a way of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from zoo.families import ZooModel
from zoo.sizes import VOCABULARY
from zoo.small import small_config

_SEQUENCE_TO_SEQUENCE: dict[str, Any] = {"decoder_start_token_id": 1, "eos_token_id": None, "pad_token_id": 0}

_ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # One expert per token, of those that have room: four tokens of a sequence each.
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        _SEQUENCE_TO_SEQUENCE
        | {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_heads": 4,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "expert_capacity": 4,
        },
    ),
    # Only two experts of each layer are ever used (see the adapter): of four, so that not all of them fit in a quarter.
    "nllb_moe": (
        "NllbMoeForConditionalGeneration",
        "NllbMoeConfig",
        _SEQUENCE_TO_SEQUENCE
        | {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "num_experts": 4,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
        },
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            "num_experts_per_tok": 1,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 0],
        },
    ),
    "llama4_text_top3": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
    ),
    "jetmoe": (
        "JetMoeForCausalLM",
        "JetMoeConfig",
        {"num_experts_per_tok": 3, "kv_channels": 16, "intermediate_size": 48},
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        "LongcatFlashConfig",
        {
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "zero_expert_num": 4,
            "expert_ffn_hidden_size": 32,
            "moe_topk": 3,
            "n_routed_experts": 8,
            "routed_scaling_factor": 2.0,
        },
    ),
    "step3p7": (
        "Step3p7ForConditionalGeneration",
        "Step3p7Config",
        {
            "text_config": {
                "share_expert_dim": 32,
                "layer_types": ["sliding_attention", "full_attention"],
                "swiglu_limits": [0.0, 0.02],
            },
            "vision_config": {},
        },
    ),
}


def _dbrx() -> PreTrainedConfig:
    from transformers import DbrxConfig

    experts = {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3}
    return DbrxConfig(
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=256,
        vocab_size=VOCABULARY,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config=experts,
        pad_token_id=0,
        bos_token_id=1,
    )


UNDECORATED: dict[str, ZooModel] = {
    name: ZooModel(name=name, class_name=model_class, config=partial(small_config, config_class, **options))
    for name, (model_class, config_class, options) in _ROWS.items()
} | {"dbrx": ZooModel(name="dbrx", class_name="DbrxForCausalLM", config=_dbrx)}
"""By name. ``llama4_text`` has one expert per token as the released models; with three the order of sums shows."""
