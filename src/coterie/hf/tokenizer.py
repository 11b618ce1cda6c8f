"""The tokenizer of a model directory, checked against the embedding it will index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import LoadError
from coterie.hf.configs import component_of_class
from coterie.hf.foreign import foreign
from coterie.hf.tokenizer_limits import check_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
            number); a token beyond the rows is an error.

    Raises:
        LoadError: If there is no tokenizer, it cannot be loaded or asks for too much, or it has a token that the
            embedding has no row for (facts ``token``, ``token_id``, ``embedding_rows``).
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
