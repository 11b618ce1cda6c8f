"""The bytes that a single token stands for: it may be half a character, which no decoder shows."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How vocabularies of SentencePiece write a blank."""
_KEPT = 65_536


class TokenBytes:
    """Tokens of one tokenizer as bytes.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {
            number: token.content for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        }
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        self._by_byte = decoder is not None and b"ByteLevel" in decoder.__getstate__()
        self.of = lru_cache(_KEPT)(self._of)

    def text(self, token_id: int) -> str:
        """The token's text; what is no whole character is shown by a sign for that."""
        return self.of(token_id).decode("utf-8", "replace")

    def _of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id]).encode("utf-8")
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return b"" if token is None else bytes(token)
        if self._by_byte and all(letter in _BYTES for letter in token):
            return bytes(_BYTES[letter] for letter in token)
        if (byte := _BYTE.fullmatch(token)) is not None:
            return bytes([int(byte[1], 16)])
        return token.replace(_BLANK, " ").encode("utf-8", "replace")


def _letters() -> dict[str, int]:
    """How byte-level vocabularies write each byte: as itself where it can be seen, else as a letter from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _letters()
