"""The files beside the weights that a store keeps: configuration, tokenizer, processors, templates, licence, card."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from coterie.errors import CheckpointFileError
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
