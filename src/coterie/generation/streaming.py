"""From tokens to text while they come: pieces that, joined, are the decoded text."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from coterie.hf.tokenizer import decode_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from coterie.generation.logprobs import NewLogprobs

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How vocabularies with byte fallback write a token that is one byte of a character."""
_WINDOW = 128
_CONTEXT = 32
"""Tokens that are decoded together at most, and how many of them are kept as context when the window moves on.

Every new token has all of them decoded; a run of bytes that is longer is decoded as a whole all the same.
"""


class TextStream:
    """A streamer for ``generate``: collects one sequence's new tokens and hands on their text piece by piece.

    A token may end in the middle of a character (Chinese in byte-level vocabularies often does); its text waits for
    the tokens that complete it. A decoder may write a token differently after others (without the space of a first
    word, a run of bytes as a character), so what is handed on is always the growth of a text of many tokens. The
    pieces, joined, are the text of all tokens. Special tokens leave no text.

    Args:
        tokenizer: The tokenizer.
        on_text: Told each piece; it is never empty.
        keep: Contents of special tokens that leave their text nevertheless: marks that say what an answer's parts are.
        stops: Texts that end the answer; they and what follows are not handed on.
        logprobs: Told which tokens came, and whose texts are handed on.

    Attributes:
        token_ids: New tokens so far, special ones included.
        text: Text handed on so far.
        stopped: Whether one of ``stops`` was met.
        first_at: ``time.perf_counter()`` when the first new token came; None before.
        last_at: The same of the last new token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_text: Callable[[str], None] | None = None,
        *,
        keep: Sequence[str] = (),
        stops: Sequence[str] = (),
        logprobs: NewLogprobs | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._logprobs = logprobs
        # Of each token, how long the decoded text was with it.
        self._ends: list[int] = []
        self._stops = tuple(stops)
        self._silent = _special_ids(tokenizer, keep)
        self._keep = bool(keep)
        self._prompt_seen = False
        # Tokens from _begin on are decoded together; _known is what of their text is known for good.
        self._begin = 0
        self._known = ""
        self._decoded = ""
        self.token_ids: list[int] = []
        self.text = ""
        self.stopped = False
        self.first_at: float | None = None
        self.last_at: float | None = None

    def put(self, value: Tensor) -> None:
        """Takes what ``generate`` gives: first the prompt, then token by token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.read(value.reshape(-1).tolist())

    def read(self, token_ids: Sequence[int]) -> None:
        """Takes new tokens."""
        if token_ids:
            self.token_ids.extend(token_ids)
            if self._logprobs is not None:
                self._logprobs.came(token_ids)
            self._take(final=False)

    @property
    def handed(self) -> int:
        """Tokens whose text was handed on, or some of it; those without text count where others follow."""
        # A token begins where the one before it ends.
        return min(bisect_left(self._ends, len(self.text)) + 1, len(self.token_ids)) if self.text else 0

    def end(self) -> None:
        """Hands on what is left, even where a character is not complete. Harmless when repeated."""
        self._take(final=True)

    def _take(self, *, final: bool) -> None:
        grown = self._decode(self.token_ids[self._begin :])
        # A run of bytes is decoded as a whole: one more byte can turn what was a character into none.
        settled = final or not (grown.endswith(_INCOMPLETE) or self._ends_in_a_byte())
        if settled and grown.startswith(self._known):
            self._decoded += grown[len(self._known) :]
            self._known = grown
            if len(self.token_ids) - self._begin > _WINDOW:
                self._move_on()
        self._ends.extend([len(self._decoded)] * (len(self.token_ids) - len(self._ends)))
        self._hand_on(final=final)

    def _hand_on(self, *, final: bool) -> None:
        """Hands on what is decoded, but what may be the beginning of a text that ends the answer."""
        if self.stopped:
            return
        until = len(self._decoded)
        # None begins in what was handed on: it would have been held back.
        begin = len(self.text)
        found = [place for stop in self._stops if (place := self._decoded.find(stop, begin)) >= 0]
        if found:
            until, self.stopped = min(found), True
        elif not final:
            until -= overlap(self._decoded, self._stops)
        piece = self._decoded[len(self.text) : until]
        if piece:
            self.text += piece
            if self._logprobs is not None:
                self._logprobs.hand_on(self.handed)
            if self._on_text is not None:
                self._on_text(piece)

    def _move_on(self) -> None:
        """Forgets the first tokens of the window, where the text of the others does not depend on them."""
        latest = len(self.token_ids) - _CONTEXT
        for begin in range(latest, max(latest - 16, self._begin), -1):
            text = self._decode(self.token_ids[begin:])
            if text and self._decoded.endswith(text):
                self._begin, self._known = begin, text
                return

    def _ends_in_a_byte(self) -> bool:
        """Whether the last token is a byte; what leaves no text does not end a run of them."""
        last = next((one for one in reversed(self.token_ids[self._begin :]) if one not in self._silent), None)
        token = None if last is None else self._tokenizer.convert_ids_to_tokens(last)
        return isinstance(token, str) and _BYTE.fullmatch(token) is not None

    def _decode(self, token_ids: list[int]) -> str:
        if self._keep:
            token_ids = [token_id for token_id in token_ids if token_id not in self._silent]
        if not token_ids:
            return ""
        return decode_tokens(
            self._tokenizer,
            token_ids,
            skip_special_tokens=not self._keep,
            clean_up_tokenization_spaces=False,
        )


class StopAtTexts:
    """A stopping criterion of ``generate``: ends a sequence once a text is in what was generated.

    It reads the tokens by itself: releases of transformers differ in whether a streamer has been given the newest.

    Args:
        tokenizer: The tokenizer.
        stops: The texts.
        keep: As :class:`TextStream` takes it.
        prompt: Tokens of the prompt.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], *, keep: Sequence[str] = (), prompt: int
    ) -> None:
        self._stream = TextStream(tokenizer, keep=keep, stops=stops)
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Any = None, **options: Any) -> Tensor:
        """Whether each sequence has ended; there is one."""
        import torch

        self._stream.read(input_ids[0, self._prompt + len(self._stream.token_ids) :].tolist())
        return torch.full((input_ids.shape[0],), self._stream.stopped, device=input_ids.device, dtype=torch.bool)


def _special_ids(tokenizer: PreTrainedTokenizerBase, keep: Sequence[str]) -> frozenset[int]:
    """Ids of the special tokens whose text is not to be shown."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(number for number, token in added.items() if token.special and token.content not in keep)


def overlap(text: str, marks: Collection[str]) -> int:
    """Characters at the end of a text that may be the beginning of one of the marks."""
    longest = max(map(len, marks), default=1) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)
