"""Texts as token ids: tokenised once, and the same for both models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.errors import InputError, UsageError
from coterie.hf.tokenizer import encode_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to be predicted.

    Attributes:
        name: For results and messages: the file's path.
        ids: Its tokens, without special ones.
        prefix: Tokens that every window begins with: the one that begins a text, where the tokenizer adds one.
    """

    name: str
    ids: tuple[int, ...]
    prefix: tuple[int, ...] = ()


def encode(tokenizer: Any, text: str, *, name: str, limit: int | None = None) -> Text:
    """Tokenises a text as one stream, without special tokens.

    Where the tokenizer puts a token at the beginning of every text, the model was trained to find it there; then every
    window begins with it, as in llama.cpp's perplexity tool.

    Args:
        tokenizer: A transformers tokenizer.
        text: What to tokenise.
        name: For results and messages.
        limit: The most tokens to predict.

    Raises:
        InputError: If it has fewer than two tokens, so that there is nothing to predict.
    """
    ids = encode_text(tokenizer, text)
    if limit is not None:
        ids = ids[: limit + 1]
    if len(ids) < 2:
        raise InputError(
            f"{name} has too few tokens, {len(ids)}: the first that is predicted is the second.",
            advice="Give a longer text.",
            path=name,
            tokens=len(ids),
        )
    return Text(name=name, ids=tuple(ids), prefix=beginning(tokenizer))


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """The token that the tokenizer begins every text with, if it does."""
    special = encode_text(tokenizer, "", add_special_tokens=True)
    return tuple(special[:1]) if special and special[0] == tokenizer.bos_token_id else ()


def check_same_tokens(tokenizer: Any, full: Any, texts: Sequence[Text], again: Sequence[Text]) -> None:
    """Checks that both models read the same tokens: a comparison of other ones would mean nothing.

    Args:
        tokenizer: Of the model that is evaluated.
        full: Of the model that it is compared with.
        texts: As the one tokenises them.
        again: As the other does.

    Raises:
        UsageError: If the vocabularies differ, or a text is tokenised in two ways.
    """
    ours, theirs = tokenizer.get_vocab(), full.get_vocab()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token, -1) != theirs.get(token, -1))
    advice = "Compare with the model that this one was made from."
    if differing:
        token = differing[0]
        raise UsageError(
            f"The two models have different tokenizers: {len(differing)} tokens differ, such as {token!r}, which is "
            f"{_id(ours, token)} in one and {_id(theirs, token)} in the other.",
            advice=advice,
            token=token,
            differing=len(differing),
        )
    for one, other in zip(texts, again, strict=True):
        if (one.ids, one.prefix) != (other.ids, other.prefix):
            raise UsageError(
                f"The two models tokenise {one.name} differently, with the same vocabulary.",
                advice=advice,
                path=one.name,
            )


def _id(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "absent"
