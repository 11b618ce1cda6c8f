"""The files beside the weights that a store keeps: configuration, tokenizer, processors, templates, licence, card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from coterie.checkpoint.formats import SIDE_FILES
from coterie.errors import CheckpointFileError
from coterie.hf.configs import COMPONENTS
from coterie.store import side_file_problem
from coterie.store.names import MAX_SIDE_FILE_BYTES

_LEFT_OUT = ("*.index.json", "trainer_state.json", "optimizer*", "scheduler*", "requirements*.txt")
_TEMPLATES = "additional_chat_templates"


def side_files(directory: Path) -> dict[str, Path]:
    """The files of a checkpoint that are copied into a store, by their relative name there.

    Raises:
        CheckpointFileError: If the directory cannot be listed.
    """
    found: dict[str, Path] = {}
    try:
        candidates = {path.name: path for path in directory.iterdir()}
        templates = directory / _TEMPLATES
        if templates.is_dir():
            candidates |= {f"{_TEMPLATES}/{path.name}": path for path in templates.glob("*.jinja")}
        for name, path in sorted(candidates.items()):
            if _is_kept(name) and path.is_file() and path.stat().st_size <= MAX_SIDE_FILE_BYTES:
                found[name] = path
    except OSError as error:
        raise CheckpointFileError(
            f"{directory} cannot be listed: {error.strerror}.", advice="Check its permissions.", path=directory
        ) from error
    return found


def _is_kept(name: str) -> bool:
    if side_file_problem(name) is not None or any(fnmatch(name, pattern) for pattern in _LEFT_OUT):
        return False
    return name.startswith(f"{_TEMPLATES}/") or any(fnmatch(name, pattern) for pattern in SIDE_FILES)


def with_dtype(raw: Mapping[str, Any], find: Callable[[], torch.dtype]) -> bytes | None:
    """A configuration that states the dtype of its model and of each of its parts, as the file of a store.

    Where a checkpoint's configuration is silent, the dtype is that of the first tensor of its first file. A store has
    other files, so that it has to say so itself.

    Args:
        raw: The content of the checkpoint's ``config.json``.
        find: Finds what the weights say.

    Returns:
        The new content, or None if the configuration says it all.
    """
    keys = [key for key in (f"{part}_config" for part in COMPONENTS) if _is_silent(raw.get(key))]
    if not keys and not _is_silent(raw):
        return None
    stated = {"dtype": str(find()).removeprefix("torch.")}
    parts = {key: {**raw[key], **stated} for key in keys}
    return as_file({**raw, **parts, **(stated if _is_silent(raw) else {})})


def as_file(raw: Mapping[str, Any]) -> bytes:
    """A configuration as the file of a store."""
    return json.dumps(raw, indent=2).encode() + b"\n"


def _is_silent(config: Any) -> bool:
    return isinstance(config, Mapping) and all(config.get(key) is None for key in ("dtype", "torch_dtype"))
