"""Tries a form of answers out in a process of its own, with limits; run as a script, with nothing but llguidance.

A schema of a few bytes can take minutes to be compiled, which nothing can stop from outside. The tokens are single
bytes here: what a form costs hardly depends on them.
"""

from __future__ import annotations

import json
import sys
from typing import Any


class _Bytes:
    """A tokenizer whose tokens are bytes, and one that ends a text."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return [*(text if isinstance(text, bytes) else text.encode())]


def _problem(described: str, limits: dict[str, Any]) -> str:
    """Why a form cannot be used; nothing if it can, or if it is for the model's own tokens to say."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    tokens = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
    matcher = LLMatcher(tokens, described, limits=LLParserLimits(**limits), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


def main() -> None:
    """Reads a request from stdin and writes what is wrong with it to stdout, both as one JSON text."""
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = _problem(request["described"], request["limits"])
    except MemoryError:
        answer = "it takes too much memory"
    with open(1, "wb") as answers:
        answers.write(json.dumps(answer).encode("ascii"))


if __name__ == "__main__":
    main()
