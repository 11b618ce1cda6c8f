"""Tiny checkpoints of models whose inputs only their own processors make, with these: they need torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from zoo.matrix import MATRIX
from zoo.small import small_config
from zoo.tokenizer import add_tokenizer
from zoo.weights import build

_TOKENS = {
    "image_token": "<|image_pad|>",
    "image_start_token": "<|vision_start|>",
    "image_end_token": "<|vision_end|>",
    "boi_token": "<|vision_start|>",
    "eoi_token": "<|vision_end|>",
    "audio_token": "<|audio_pad|>",
    "boa_token": "<|audio_start|>",
    "eoa_token": "<|audio_end|>",
    "video_token": "<|video_pad|>",
}
_HALF = [0.5, 0.5, 0.5]


def save_with_processor(name: str, directory: Path) -> None:
    """Saves a model of the zoo in bfloat16, with a processor of its class that prepares small pictures.

    Args:
        name: ``gemma4`` or ``nemotron_h_omni``.
        directory: Where to.
    """
    config, make = {"gemma4": (gemma4_config(), _gemma4_processor),
                    "nemotron_h_omni": (MATRIX["nemotron_h_omni"].config(), _nemotron_processor)}[name]  # fmt: skip
    build(MATRIX[name].model_class, config, torch.bfloat16).save_pretrained(directory)
    add_tokenizer(directory, chat=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, extra_special_tokens=_TOKENS)
    make(tokenizer).save_pretrained(directory)


def gemma4_config() -> Any:
    return small_config(
        "Gemma4Config",
        text_config={"layer_types": ["sliding_attention", "full_attention"], "enable_moe_block": True,
                     "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
        vision_config={"position_embedding_size": 64},
        audio_config={"model_type": "gemma4_audio"},
        video_token_id=116,  # its processor adds a token of its own to the tokenizer
    )  # fmt: skip


def _gemma4_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor

    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70),
        tokenizer,
        Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70, num_frames=4),
    )


def _nemotron_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    from transformers.models.nemotron_h_omni import image_processing_nemotron_h_omni as images
    from transformers.models.nemotron_h_omni import processing_nemotron_h_omni as processing
    from transformers.models.nemotron_h_omni import video_processing_nemotron_h_omni as videos

    return processing.NemotronH_Omni_Reasoning_V3Processor(
        images.NemotronH_Omni_Reasoning_V3ImageProcessor(
            patch_size=4, min_num_patches=4, max_num_patches=16, max_model_len=64
        ),
        videos.NemotronH_Omni_Reasoning_V3VideoProcessor(
            patch_size=4, video_target_num_patches=16, norm_mean=_HALF, norm_std=_HALF
        ),
        tokenizer,
        transformers.ParakeetFeatureExtractor(feature_size=16),
    )
