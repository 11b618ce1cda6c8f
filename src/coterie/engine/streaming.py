"""From tokens to text while they come: only whole characters are handed on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """A streamer for ``generate``: collects one sequence's new tokens and hands on their text piece by piece.

    A token may end in the middle of a character (Chinese in byte-level vocabularies often does); its text waits for
    the tokens that complete it. The pieces, joined, are the text of all tokens. Special tokens leave no text.

    Args:
        tokenizer: The tokenizer.
        on_text: Told each piece; it is never empty.

    Attributes:
        token_ids: New tokens so far, special ones included.
        text: Text handed on so far.
        first_at: ``time.perf_counter()`` when the first new token came; None before.
        last_at: The same of the last new token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None] | None = None) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._prompt_seen = False
        # Tokens from _begin on are decoded together, because some vocabularies write a first token differently;
        # those before _end have been handed on.
        self._begin = 0
        self._end = 0
        self.token_ids: list[int] = []
        self.text = ""
        self.first_at: float | None = None
        self.last_at: float | None = None

    def put(self, value: Tensor) -> None:
        """Takes what ``generate`` gives: first the prompt, then token by token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.token_ids.extend(value.reshape(-1).tolist())
        self._hand_on(final=False)

    def end(self) -> None:
        """Hands on what is left, even where a character is not complete. Harmless when repeated."""
        self._hand_on(final=True)

    def _hand_on(self, *, final: bool) -> None:
        known = self._decode(self.token_ids[self._begin : self._end])
        grown = self._decode(self.token_ids[self._begin :])
        if grown.endswith(_INCOMPLETE) and not final:
            return
        self._begin, self._end = self._end, len(self.token_ids)
        piece = grown[len(known) :]
        if piece:
            self.text += piece
            if self._on_text is not None:
                self._on_text(piece)

    def _decode(self, token_ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if token_ids
            else ""
        )
