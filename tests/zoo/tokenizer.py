"""A tokenizer that fits the zoo's token ids: words ``w3`` … ``w96``, and the tokens of turns and media; a processor."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from zoo.sizes import TEXT_IDS, TOKENS

_PARTS = (
    "{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
)
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}" + _PARTS + "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = {"system", "user", "assistant"}
_NAMES = {"newline": "\n", "audio": "<|audio_pad|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}


def add_tokenizer(directory: Path, *, chat: bool) -> None:
    """Puts a tokenizer into a checkpoint's directory, with a chat template of Qwen's kind if ``chat``."""
    vocabulary = {"<pad>": 0, "<s>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, TEXT_IDS + 1)}
    vocabulary |= {f"<unused{number}>": number for number in range(TEXT_IDS + 1, min(TOKENS.values()))}
    named = {name if name in _WORDS else _NAMES.get(name, f"<|{name}|>"): number for name, number in TOKENS.items()}
    tokenizer = Tokenizer(WordLevel(vocabulary | named, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in named if name.startswith("<")])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<|im_end|>"}
    if chat:
        config["chat_template"] = _TEMPLATE
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def add_processor(directory: Path) -> None:
    """Puts a processor into the directory of a Qwen3-Omni: of small pictures and frames, and of few mel bands."""
    config = json.loads((directory / "config.json").read_text())
    thinker = config.get("thinker_config", config)
    vision, audio = thinker["vision_config"], thinker["audio_config"]
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": audio["num_mel_bins"],
        "image_mean": [0.5] * 3,
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.5] * 3,
        "merge_size": vision["spatial_merge_size"],
        "patch_size": vision["patch_size"],
        "processor_class": "Qwen3OmniMoeProcessor",
        "size": {"longest_edge": 4096, "shortest_edge": 1024},
        "temporal_patch_size": vision["temporal_patch_size"],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
