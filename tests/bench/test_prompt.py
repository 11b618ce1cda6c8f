"""A prompt of just the length asked for."""

import pytest
import torch

from coterie.bench import prompt_of
from coterie.errors import InputError, UsageError


class Letters:
    """A tokenizer with one token for each letter."""

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


@pytest.mark.parametrize(("length", "expected"), [(1, "a"), (3, "abc"), (7, "abcabca")])
def test_the_text_is_cut_or_repeated(length, expected):
    ids = prompt_of(Letters(), length, "abc")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[ord(letter) for letter in expected]]


def test_what_cannot_be():
    with pytest.raises(UsageError, match="at least one token, not 0"):
        prompt_of(Letters(), 0)
    with pytest.raises(InputError, match="no tokens"):
        prompt_of(Letters(), 4, "")
