"""A tokenizer that fits the zoo's token ids: words ``w3`` … ``w96``, and the tokens of turns and media."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from zoo.sizes import TEXT_IDS, TOKENS

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
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
