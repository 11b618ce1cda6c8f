"""The tokenizer of a model directory, checked against the embedding it will index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def load_tokenizer(path: str | Path, embedding_rows: int | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a store or checkpoint directory.

    A tokenizer without a padding token pads with its end-of-text token, so that batches can be made.

    Args:
        path: The directory.
        embedding_rows: Rows of the model's input embedding. Rows beyond the vocabulary are usual (padding to a round
            number); a token beyond the rows is an error.

    Raises:
        LoadError: If there is no tokenizer, it cannot be loaded, or it has a token that the embedding has no row for
            (facts ``token``, ``token_id``, ``embedding_rows``).
    """
    # Here, not above: importing transformers takes seconds, and reading a plan or a trace does not need it.
    from transformers import AutoTokenizer

    directory = Path(path)
    if not any((directory / name).is_file() for name in _FILES) and not any(directory.glob("*.tiktoken")):
        raise LoadError(
            f"{directory} holds no tokenizer (none of {', '.join(_FILES)}).",
            advice="Copy tokenizer.json and tokenizer_config.json from the checkpoint into it.",
            path=directory,
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"The tokenizer in {directory} cannot be loaded: {error}", path=directory) from error
    if embedding_rows is not None:
        check_tokenizer(tokenizer, embedding_rows, path=directory)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, *, path: Path) -> None:
    """Checks that every token, added ones included, has a row in the embedding.

    Args:
        tokenizer: The tokenizer.
        embedding_rows: Rows of the model's input embedding.
        path: Where the tokenizer came from; named in the error.

    Raises:
        LoadError: If a token id is not below ``embedding_rows``.
    """
    token, token_id = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if token_id >= embedding_rows:
        raise LoadError(
            f"The tokenizer in {path} does not fit the model: token {token!r} has id {token_id}, but the embedding has "
            f"{embedding_rows} rows.",
            advice="Use the tokenizer that came with this checkpoint.",
            path=path,
            token=token,
            token_id=token_id,
            embedding_rows=embedding_rows,
        )
