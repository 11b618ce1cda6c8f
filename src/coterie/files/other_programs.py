"""Ways to name a model that other programs understand: recognised, with what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

from coterie.errors import CheckpointNotFoundError, CoterieError, StoreNotFoundError, UnsupportedError, UsageError
from coterie.files.gguf import gguf_error

_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?(?P<id>[\w.-]+/[\w.-]+)(?P<rest>/.*)?$"
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_TAG = re.compile(r"[\w.-]+(?:/[\w.-]+)*:[\w.-]+$")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_EXAMPLE = "Pass a directory, or a Hub id like 'Qwen/Qwen3-30B-A3B'."


def check_form(model: str | Path) -> None:
    """Refuses files, addresses and names of other programs, and says what was probably meant.

    Args:
        model: What a user wrote.

    Raises:
        UsageError: If it is no name at all, or an address.
        UnsupportedError: If it is a file in a format that is not read.
        CheckpointNotFoundError: If it is another file, or a name that another program has for a model.
    """
    text = str(model)
    if isinstance(model, str) and not text.strip():
        raise UsageError("The name of the model is empty.", advice=f"{_EXAMPLE} '.' is this directory.", got=model)
    if "\0" in text:
        raise UsageError(f"{text!r} is no name of a model.", advice=_EXAMPLE, got=model)
    address = _ADDRESS.match(text)
    if address is not None:
        raise UsageError(
            f"{text!r} is the address of a repository.", advice=f"Write its id: {address['id']!r}.", got=model
        )
    if _SCHEME.match(text):
        raise UsageError(f"{text!r} is an address; models are not opened by addresses.", advice=_EXAMPLE, got=model)
    path = _expanded(text)
    if _exists(path):
        if not path.is_dir():
            raise _file_error(path)
        return
    if path.suffix == ".gguf":
        raise CheckpointNotFoundError(
            f"There is no file {text!r}; and Coterie does not read GGUF files.",
            advice="Use the model's original checkpoint in safetensors files.",
        )
    if _TAG.match(text):
        raise CheckpointNotFoundError(
            f"{text!r} looks like the tag of a model in Ollama's library, which Coterie does not read.",
            advice="Use the model's repository on the Hub, such as 'Qwen/Qwen3-30B-A3B'.",
            got=text,
        )


def no_model(directory: Path) -> CoterieError:
    """The error for a directory that is neither a store nor a checkpoint; says what it has instead."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        return CheckpointNotFoundError(
            f"{directory} cannot be listed: {error.strerror}.", advice="Check its permissions.", path=directory
        )
    gguf = next((name for name in names if name.endswith(".gguf")), None)
    if gguf is not None:
        return gguf_error(directory / gguf)
    weights = next((name for name in names if name.endswith(".safetensors")), None)
    if weights is not None:
        return StoreNotFoundError(
            f"{directory} has {weights} and no config.json: a checkpoint needs both.",
            advice="Download config.json, and the tokenizer's files, from the same repository.",
            path=directory,
        )
    inner = next((name for name in names if _is_model(directory / name)), None)
    return StoreNotFoundError(
        f"{directory} is neither a store nor a checkpoint: it has neither coterie.json nor config.json.",
        advice=_EXAMPLE if inner is None else f"Did you mean {str(directory / inner)!r}?",
        path=directory,
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "coterie.json").is_file()


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointNotFoundError(
            f"There is no directory {ascii(str(path))[:300]} that can be opened: {error.strerror}.",
            advice=_EXAMPLE,
            path=path,
        ) from error
    return True


def _file_error(path: Path) -> CoterieError:
    if path.suffix == ".gguf":
        return gguf_error(path)
    if path.suffix in _PICKLES:
        return UnsupportedError(
            f"{path} may be a pickle, which is never opened.",
            advice="Pass a directory with the model in safetensors files.",
            path=path,
        )
    what = f"{path} is a file; a model is a directory."
    if path.suffix in (".safetensors", ".json"):
        return CheckpointNotFoundError(what, advice=f"Pass the directory: {str(path.parent)!r}.", path=path)
    return CheckpointNotFoundError(what, advice=_EXAMPLE, path=path)
