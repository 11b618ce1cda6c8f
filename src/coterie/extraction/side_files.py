"""The files beside the weights that a store keeps: configuration, tokenizer, processors, templates, licence, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from coterie.errors import CheckpointFileError
from coterie.hf.configs import COMPONENTS
from coterie.store import side_file_problem
from coterie.store.names import MAX_SIDE_FILE_BYTES

_KEPT = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*", "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip
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
    return name.startswith(f"{_TEMPLATES}/") or any(fnmatch(name, pattern) for pattern in _KEPT)


def with_dtype(raw: Mapping[str, Any], dtype: torch.dtype) -> bytes | None:
    """A configuration that states the dtype of its model and of each of its parts, as the file of a store.

    Where a checkpoint's configuration is silent, the dtype is that of the first tensor of its first file. A store has
    other files, so that it has to say so itself.

    Args:
        raw: The content of the checkpoint's ``config.json``.
        dtype: What the weights say.

    Returns:
        The new content, or None if the configuration says it all.
    """
    name = str(dtype).removeprefix("torch.")
    parts = {f"{part}_config": raw[f"{part}_config"] for part in COMPONENTS if f"{part}_config" in raw}
    stated = {**raw, **{key: _stating(part, name) for key, part in parts.items()}}
    stated = _stating(stated, name)
    return None if stated == raw else json.dumps(stated, indent=2).encode() + b"\n"


def _stating(config: Any, dtype: str) -> Any:
    silent = isinstance(config, Mapping) and all(config.get(key) is None for key in ("dtype", "torch_dtype"))
    return {**config, "dtype": dtype} if silent else config
