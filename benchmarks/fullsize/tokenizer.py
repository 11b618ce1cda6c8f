"""A tokenizer of fixed-width tokens, in the form that transformers reads: three letters are a token."""

from __future__ import annotations

import json

from fullsize.walk import TOKEN_LENGTH, text_of


def tokenizer_files(vocabulary: int) -> dict[str, bytes]:
    """``tokenizer.json`` and ``tokenizer_config.json``."""
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"[0-9A-Za-z]{{{TOKEN_LENGTH}}}"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {text_of(token): token for token in range(vocabulary)},
            "unk_token": text_of(0),
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": json.dumps(tokenizer, separators=(",", ":")).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
