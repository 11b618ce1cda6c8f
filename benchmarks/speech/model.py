"""Random models whose talker, code predictor and vocoder have the released Qwen3-Omni's dimensions.

The thinker is small: a frame of speech does not go through it. Of the talker's 128 experts a layer has eight here. A
frame goes through six of them, and those of all layers are several times larger than a processor's caches.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

import coterie

_THINKER = {
    "text_config": {
        "hidden_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 128, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "intermediate_size": 64, "vocab_size": 1024,
    },
    "vision_config": {
        "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 2048, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    },
    "audio_config": {
        "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32,
        "output_dim": 2048, "downsample_hidden_size": 8, "max_source_positions": 64,
    },
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20], "interleaved": True}
_TALKER = {
    "hidden_size": 1024, "intermediate_size": 2048, "moe_intermediate_size": 384, "num_attention_heads": 16,
    "shared_expert_intermediate_size": 768, "num_key_value_heads": 2, "head_dim": 128, "num_hidden_layers": 20,
    "num_experts": 8, "num_experts_per_tok": 6, "norm_topk_prob": True, "vocab_size": 3072,
    "rope_parameters": _ROPE,
}  # fmt: skip
_PREDICTOR = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "num_hidden_layers": 5, "num_code_groups": 16, "vocab_size": 2048,
}  # fmt: skip
_SMALL_TALKER = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 128, "intermediate_size": 128,
    "shared_expert_intermediate_size": 64, "moe_intermediate_size": 64,
}  # fmt: skip
_SMALL_PREDICTOR = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                    "head_dim": 32, "intermediate_size": 128}  # fmt: skip
_SMALL_VOCODER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
                  "intermediate_size": 64, "decoder_dim": 32}  # fmt: skip
_RESIDUAL = ("o_proj", "down_proj")


def config_of(*, small: bool) -> Any:
    """The configuration of the whole model.

    Args:
        small: Whether the parts that speak are small, too: to see that something works.
    """
    from transformers import Qwen3OmniMoeConfig

    talker = {
        "text_config": _TALKER | (_SMALL_TALKER if small else {}),
        "code_predictor_config": _PREDICTOR | (_SMALL_PREDICTOR if small else {}),
        "num_code_groups": 16, "thinker_hidden_size": 2048, "accept_hidden_layer": 1, "spatial_merge_size": 2,
        "codec_bos_id": 2149, "codec_eos_token_id": 2150, "codec_pad_id": 2148, "speaker_id": {"ethan": 2302},
    }  # fmt: skip
    return Qwen3OmniMoeConfig(
        thinker_config=_THINKER, talker_config=talker, code2wav_config=_SMALL_VOCODER if small else {}
    )


def predictor_of(config: Any) -> Any:
    """A code predictor with random weights in bfloat16, such that one code is likelier than another."""
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration as Predictor,
    )

    predictor: Any = Predictor._from_config(config.talker_config.code_predictor_config, dtype=torch.bfloat16)
    spread(predictor)
    return predictor.eval()


def spread(model: torch.nn.Module) -> None:
    """Gives matrices random weights by which values keep their size, and codes are not all alike."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embedding" in name:
                weight.normal_()
            elif weight.dim() > 1 and "code2wav" not in name:
                gain = 0.4 if any(part in name for part in _RESIDUAL) else 3.0 if "head" in name else 1.0
                # Experts are [E, outputs, inputs], kernels of convolutions [outputs, ...].
                weight.normal_(std=gain * (weight[0, 0] if "experts" in name else weight[0]).numel() ** -0.5)
    model.requires_grad_(False)


def store_of(folder: Path, dense: str, *, small: bool) -> Path:
    """A store of the whole model with experts in int4, made once.

    Args:
        folder: For stores and their checkpoint.
        dense: Schemes of linear layers outside experts, as ``coterie extract --dense-scheme`` takes them.
        small: As in :func:`config_of`.
    """
    size = "small" if small else "released"
    checkpoint, store = folder / f"{size}-checkpoint", folder / f"{size}-{dense.replace(',', '-').replace('=', '-')}"
    if not (store / "coterie.json").exists():
        if not (checkpoint / "config.json").exists():
            _write(checkpoint, small=small)
        coterie.extract(checkpoint, store, scheme="int4", dense_scheme=dense)
    return store


def _write(checkpoint: Path, *, small: bool) -> None:
    from transformers import Qwen3OmniMoeForConditionalGeneration

    torch.manual_seed(0)
    model: Any = Qwen3OmniMoeForConditionalGeneration._from_config(config_of(small=small), dtype=torch.bfloat16)
    spread(model)
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    partial.rename(checkpoint)
