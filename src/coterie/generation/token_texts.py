"""Token ids as text: what people read of a profile, which keeps ids alone."""

from __future__ import annotations

from pathlib import Path

from coterie.errors import CoterieError
from coterie.files.naming import IN_PACKAGE
from coterie.hf.tokenizer import decode_tokens, load_tokenizer, tokenizer_file
from coterie.profiles.heavy_tokens import TokenText, plain_id


def token_texts(model: str | Path, *, revision: str | None = None, offline: bool = False) -> TokenText:
    """What a model's tokenizer says that a token is. No weights are read, and none are downloaded.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.

    Raises:
        CheckpointError, StoreError: If the model cannot be used.
        LoadError: If its tokenizer cannot.
    """
    # Here: it imports transformers, which takes seconds, and a model that a profile names is often not at hand.
    from coterie.engine.source import model_directory

    tokenizer = load_tokenizer(model_directory(model, revision=revision, offline=offline))
    known = len(tokenizer)

    def text_of(token: int) -> str:
        return decode_tokens(tokenizer, [token]) if token < known else plain_id(token)

    return text_of


def recorded_token_texts(name: str) -> TokenText | None:
    """The same for the model that a profile names, if it is at hand: one of the package, or a directory.

    Args:
        name: What :attr:`~coterie.profiles.RunFacts.tokenizer` says.
    """
    directory = Path(name)
    if not name or (name not in IN_PACKAGE and (not directory.is_dir() or tokenizer_file(directory) is None)):
        return None
    try:
        return token_texts(name, offline=True)
    except CoterieError:
        return None
