"""The tokenizer of a model directory, checked against the embedding it will index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError, LoadError
from coterie.hf.configs import component_of_class
from coterie.hf.foreign import foreign
from coterie.hf.tokenizer_limits import check_tokenizer_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FEW = 64
"""Tokens without a row that are put up with in the smallest vocabulary."""

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)

_LONGEST_TOKEN = 65_536
"""Characters. The longest tokens of released vocabularies have some hundred."""


def tokenizer_file(directory: Path) -> str | None:
    """The name of the file that a directory's tokenizer is in, or None if it has none."""
    named = (name for name in _FILES if (directory / name).is_file())
    return next(named, None) or next((path.name for path in sorted(directory.glob("*.tiktoken"))), None)


def embedding_rows(model: PreTrainedModel) -> int | None:
    """Rows of the embedding that a tokenizer's ids index, on the meta device too.

    A whole omni model has no embedding of its own: its thinker reads the text. A talker has one for codes of speech
    and none for text; then this is None.
    """
    reader: PreTrainedModel = getattr(model, "thinker", model)
    if component_of_class(type(reader), reader.config) == "talker":
        return None
    return int(reader.get_input_embeddings().weight.shape[0])


def load_tokenizer(path: str | Path, embedding_rows: int | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a store or checkpoint directory.

    A tokenizer without a padding token pads with its end-of-text token, so that batches can be made.

    Args:
        path: The directory.
        embedding_rows: Rows of the model's input embedding. Rows beyond the vocabulary are usual (padding to a round
            number); a few tokens beyond the rows are warned of, many are an error.

    Raises:
        LoadError: If there is no tokenizer, it cannot be loaded or asks for too much, or it has many tokens without a
            row in the embedding (facts ``token``, ``token_id``, ``embedding_rows``).
    """
    # Here, not above: importing transformers takes seconds, and reading a plan or a trace does not need it.
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    directory = Path(path)
    if tokenizer_file(directory) is None:
        raise LoadError(
            f"{directory} holds no tokenizer (none of {', '.join(_FILES)}).",
            advice="Copy tokenizer.json and tokenizer_config.json from the checkpoint into it.",
            path=directory,
        )
    check_tokenizer_files(directory)
    with foreign("The tokenizer", directory):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"its class {type(tokenizer).__name__} is no tokenizer")
        vocabulary = tokenizer.get_vocab()
        longest = max(map(len, vocabulary), default=0)
        if not vocabulary or longest > _LONGEST_TOKEN:
            raise ValueError(f"it has {len(vocabulary)} tokens, the longest of {longest:,} characters")
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        _set_up(tokenizer)
    if embedding_rows is not None:
        _check_rows(vocabulary, embedding_rows, directory)
    return tokenizer


def takes_many_callers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether several threads may have texts made into tokens at once, as long as nobody asks for padding or a cut."""
    return bool(getattr(tokenizer, "is_fast", False))


def _set_up(tokenizer: PreTrainedTokenizerBase) -> None:
    """Has a tokenizer as each call without padding and cut would set it up.

    A call that finds it otherwise changes it, and fails while another thread uses it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if takes_many_callers(tokenizer) and backend is not None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))


def encode_text(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Tokens of a text, however long it is.

    Raises:
        InputError: If the tokenizer fails over it; names the tokenizer's directory.
    """
    with foreign("The tokenizer", _home(tokenizer), error=InputError):
        # verbose: it would warn of a text that is longer than the model's context, which is cut for later.
        ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids


def decode_tokens(tokenizer: Any, token_ids: Sequence[int], **options: bool) -> str:
    """The text of tokens.

    Args:
        tokenizer: The tokenizer.
        token_ids: Token ids.
        **options: As the tokenizer's ``decode`` takes them.

    Raises:
        InputError: If the tokenizer fails over them; names the tokenizer's directory.
    """
    with foreign("The tokenizer", _home(tokenizer), error=InputError):
        return str(tokenizer.decode(list(token_ids), **options))


def _home(tokenizer: Any) -> Path:
    return Path(str(getattr(tokenizer, "name_or_path", "")))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, *, path: Path) -> None:
    """Checks that tokens, added ones included, have rows in the embedding.

    A few without are usual: a padding token that was added and never trained, whose text no prompt has. A prompt that
    has it is refused then (see :func:`check_ids`). Many are another model's vocabulary.

    Args:
        tokenizer: The tokenizer.
        embedding_rows: Rows of the model's input embedding.
        path: Where the tokenizer came from; named in the error.

    Raises:
        LoadError: If many token ids are not below ``embedding_rows``.
    """
    _check_rows(tokenizer.get_vocab(), embedding_rows, path)


def _check_rows(vocabulary: Mapping[str, int], embedding_rows: int, path: Path) -> None:
    """See :func:`check_tokenizer`; a vocabulary of 150,000 tokens takes a fifth of a second to be made."""
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= embedding_rows)
    if not beyond:
        return
    token_id, token = beyond[-1]
    if len(beyond) <= max(_FEW, embedding_rows // 100):
        warnings.warn(
            f"The tokenizer in {path} has {len(beyond)} tokens that the embedding of {embedding_rows} rows has no row "
            f"for, such as {token!r}: a prompt with one is refused.",
            stacklevel=3,
        )
        return
    raise LoadError(
        f"The tokenizer in {path} does not fit the model: {len(beyond)} tokens have no row in its embedding. Token "
        f"{token!r} has id {token_id}, but the embedding has {embedding_rows} rows.",
        advice="Use the tokenizer that came with this checkpoint.",
        path=path,
        token=token,
        token_id=token_id,
        embedding_rows=embedding_rows,
    )


def check_ids(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> None:
    """Checks that the tokens of a prompt have rows in the embedding.

    Args:
        ids: Token ids, int64.
        tokenizer: Where they are from, for the message.
        embedding_rows: Rows of the model's input embedding.

    Raises:
        InputError: Naming the first that has none.
    """
    beyond = ids[ids >= embedding_rows]
    if beyond.numel():
        token_id = int(beyond[0])
        raise InputError(
            f"The prompt has the token {tokenizer.convert_ids_to_tokens(token_id)!r} (id {token_id}), for which the "
            f"model has no row: its embedding has {embedding_rows}.",
            advice="Leave it out of the prompt.",
            token_id=token_id,
            embedding_rows=embedding_rows,
        )
