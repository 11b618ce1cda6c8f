"""What lies beside the weights: configurations, a tokenizer with a chat template, and the processors' settings."""

from __future__ import annotations

import json

from fullsize.omni.configuration import Config, named_tokens
from fullsize.tokenizer import tokenizer_files

_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|><|' + message.role + '|>\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|><|assistant|>\\n' }}{%- endif -%}
"""

_PICTURES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    "temporal_patch_size": 2,
}
_SOUNDS = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "chunk_length": 300,
    "dither": 0.0,
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
_VIDEOS = {**_PICTURES, "video_processor_type": "Qwen2VLVideoProcessor", "size": {
    "shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}}  # fmt: skip
del _VIDEOS["image_processor_type"]


def side_files(config: Config) -> dict[str, bytes]:
    """Content of each file by its name."""
    tokens = named_tokens(config)
    processors = {"processor_class": "Qwen3OmniMoeProcessor"}
    return {
        "config.json": _json(config),
        "generation_config.json": _json(_generation(tokens)),
        "preprocessor_config.json": _json(_PICTURES | _SOUNDS | processors),
        "video_preprocessor_config.json": _json(_VIDEOS | processors),
        **_tokenizer(config["thinker_config"]["text_config"]["vocab_size"], tokens),
    }


def _generation(tokens: dict[str, int]) -> Config:
    """What transformers lets the talker do where nothing is stated, and the ends of a text."""
    return {
        "eos_token_id": tokens["<|im_end|>"],
        "pad_token_id": tokens["<|endoftext|>"],
        "talker_max_new_tokens": 4096,
        "talker_repetition_penalty": 1.05,
        "talker_temperature": 0.9,
        "talker_top_k": 50,
        "talker_top_p": 1.0,
    }


def _tokenizer(vocabulary: int, tokens: dict[str, int]) -> dict[str, bytes]:
    """The tokenizer of full-size models, three letters a word, with tokens for roles and media in their places."""
    files = tokenizer_files(vocabulary)
    tokenizer, config = (json.loads(files[name]) for name in ("tokenizer.json", "tokenizer_config.json"))
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    texts |= {number: text for text, number in tokens.items()}
    tokenizer["model"]["vocab"] = {text: number for number, text in sorted(texts.items())}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] = [
        {"id": number, "content": text, "special": text != "\n", **plain}
        for text, number in sorted(tokens.items(), key=lambda item: item[1])
    ]
    config |= {
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
        "audio_token": "<|audio_pad|>",
        "chat_template": _TEMPLATE,
        "eos_token": "<|im_end|>",
        "image_token": "<|image_pad|>",
        "pad_token": "<|endoftext|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, separators=(",", ":")).encode(),
        "tokenizer_config.json": _json(config),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
