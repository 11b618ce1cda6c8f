"""Sizes and token ids that all models of the zoo share."""

from typing import Any

VOCABULARY = 128
TEXT_IDS = 96
"""Ordinary text uses the ids from 3 to this one; those above have a meaning in multimodal models."""

TOKENS = {
    "im_start": 100,
    "im_end": 101,
    "system": 102,
    "user": 103,
    "assistant": 104,
    "newline": 105,
    "tts_pad": 106,
    "tts_bos": 107,
    "tts_eos": 108,
    "audio_start": 109,
    "audio_end": 110,
    "audio": 111,
    "vision_start": 112,
    "vision_end": 113,
    "image": 114,
    "video": 115,
}

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
"""Options of every text model's configuration; without an end token generation has the length that was asked for."""
