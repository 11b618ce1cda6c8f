"""Does the tokenizer belong to the model? Found before a store is made, not when its text turns out to be noise."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from coterie.errors import CoterieError, LoadError
from coterie.hf.configs import load_config, resolve_model
from coterie.hf.skeleton import build_skeleton
from coterie.hf.tokenizer import embedding_rows, load_tokenizer, tokenizer_file
from coterie.store import Problem


def check_tokenizer(directory: Path, rows: int | None) -> None:
    """Refuses a tokenizer that has a token which the embedding has no row for.

    A directory without a tokenizer is fine. One that transformers cannot load is warned of: the experts are none the
    worse for it.

    Args:
        directory: Of the checkpoint.
        rows: What :func:`~coterie.hf.tokenizer.embedding_rows` says of the model.

    Raises:
        LoadError: If it is another model's; as opening the model for text would.
    """
    error = _error(directory, rows)
    if error is None:
        return
    if "token_id" in error.facts:
        raise error
    warnings.warn(f"{error.message} The store is made with it as it is.", stacklevel=3)


def tokenizer_problems(directory: Path, rows: int | None) -> list[Problem]:
    """The same as a problem of a file; none if what it takes to load the tokenizer is not installed, with a warning."""
    error = _error(directory, rows)
    if error is None:
        return []
    if isinstance(error.__cause__, ImportError):
        _warn_unchecked(error)
        return []
    place = str(error.facts.get("token", "the file itself"))
    file = tokenizer_file(directory) or ""
    return [Problem(kind="malformed", file=file, place=place, rule="", message=error.message)]


def store_tokenizer_problems(directory: Path, component: str | None, tensors: int | None = None) -> list[Problem]:
    """The same for a store, whose model is known by its configuration only.

    Args:
        directory: The store.
        component: The part of the model that it holds, or None.
        tensors: About how many tensors the model was saved as.
    """
    if tokenizer_file(directory) is None:
        return []
    try:
        wanted = resolve_model(load_config(directory), component)
        model = build_skeleton(*wanted, torch.float32, path=directory / "config.json", tensors=tensors)
    except CoterieError as error:
        # Another release of transformers may know the model; the store is none the worse.
        _warn_unchecked(error)
        return []
    return tokenizer_problems(directory, embedding_rows(model))


def _error(directory: Path, rows: int | None) -> LoadError | None:
    if rows is None or tokenizer_file(directory) is None:
        return None
    try:
        load_tokenizer(directory, rows)
    except LoadError as error:
        return error
    return None


def _warn_unchecked(error: CoterieError) -> None:
    warnings.warn(f"Whether the tokenizer fits the model was not checked: {error.message}", stacklevel=4)
