"""A prompt of a given length: text where the model has a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from coterie.errors import InputError, UsageError
from coterie.hf.tokenizer import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "A library keeps far more books than its reading room has seats for. Most stay in the stacks, and what readers "
    "ask for is fetched and laid on a table. Whoever works on one subject asks for the same few shelves again and "
    "again, so a good librarian leaves those books out and returns the others first. When the subject changes, the "
    "tables are cleared slowly, one volume at a time, and for a while every second request means a walk. Nothing of "
    "what is read depends on where a book was lying: only how long the reader has to wait."
)
"""What is repeated until there are enough tokens: ordinary prose, so that routing is that of text, not of noise."""


def prompt_of(tokenizer: PreTrainedTokenizerBase, length: int, text: str = TEXT) -> torch.Tensor:
    """Token ids, int64 [1, length], of a text that is repeated or cut to fit.

    Raises:
        UsageError: If the length is not positive.
        InputError: If the text has no tokens.
    """
    if length < 1:
        raise UsageError(f"A prompt has at least one token, not {length}.", got=length)
    ids = encode_text(tokenizer, text)
    if not ids:
        raise InputError("The prompt's text has no tokens.", advice="Give a file with some text.")
    repeated = ids * -(-length // len(ids))
    return torch.tensor([repeated[:length]], dtype=torch.int64)
