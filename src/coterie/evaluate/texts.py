"""Texts as token ids: read, tokenised once, and the same for both models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import InputError, UsageError

PART_CHARACTERS = 1 << 18
"""Characters of a part of a long text: enough that its ends do not matter, little enough to be tokenised at once."""


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


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, line ends as they are.

    Raises:
        InputError: If there is no such file, or it is empty or not UTF-8.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(file, f"{error.reason} at byte {error.start}") from error
    if not text.strip():
        raise InputError(f"{file} is empty.", advice="Give a text of some thousand words.", path=file)
    return text


def text_parts(path: str | Path, characters: int = PART_CHARACTERS) -> Iterator[str]:
    """The content of a UTF-8 file in parts that end between lines where lines are not too long; as it is.

    Args:
        path: The file; of any size, since no more than a part is in memory.
        characters: Of a part, at least; at most twice as many.

    Raises:
        InputError: If there is no such file, or when it turns out not to be UTF-8.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            while part := stream.read(characters):
                yield part + stream.readline(characters)
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise _not_text(file, error.reason) from error


def _unreadable(file: Path, error: OSError) -> InputError:
    return InputError(f"The text {file} cannot be read: {error.strerror}.", advice="Check the path.", path=file)


def _not_text(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is not UTF-8 text ({reason}).", advice="Convert it: iconv -f LATIN1 -t UTF-8.", path=file
    )


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
    ids = token_ids(tokenizer, text)
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


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text as one stream, without special ones."""
    # verbose: the tokenizer would warn that the stream is longer than the model's context, which it is cut for later.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """The token that the tokenizer begins every text with, if it does."""
    special = tokenizer("", add_special_tokens=True)["input_ids"]
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
