"""Checkpoints whose weights are not in a format that is read here: named by their files, before anything is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from coterie.errors import UnsupportedError
from coterie.files.gguf import gguf_error

_AS_SMALL = "with 'coterie extract … --scheme int4' it becomes about as small"
_ORIGINAL = "Use the model's original checkpoint in safetensors files."
_WHOLE = "Use a repository with a whole model in safetensors files."


@dataclass(frozen=True, slots=True)
class _Format:
    """A format that is not read.

    Attributes:
        patterns: Files that it is known by.
        name: What such a file is.
        advice: What to use instead.
    """

    patterns: tuple[str, ...]
    name: str
    advice: str = _ORIGINAL


_GGUF = ("*.gguf",)
_FORMATS = (
    _Format(_GGUF, "a GGUF file, which is made for llama.cpp", f"{_ORIGINAL[:-1]}; {_AS_SMALL}."),
    _Format(
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
        "a pickle, which is never opened",
        "Convert it to safetensors with transformers' save_pretrained, or look for a release that has safetensors.",
    ),
    _Format(("*.onnx",), "an ONNX graph"),
    _Format(("*.h5", "*.msgpack"), "a file for TensorFlow or Flax"),
    _Format(("*.nemo",), "a NeMo archive"),
    _Format(("*.mlpackage/*", "*.mlmodel"), "a Core ML model"),
    _Format(("*.pte",), "an ExecuTorch program"),
    _Format(("*.engine",), "a TensorRT engine"),
)
SIDE_FILES = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*", "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip
"""Patterns of the files beside the weights: configuration, tokenizer, processors, templates, licence, card."""
ADAPTER = "adapter_config.json"
"""Beside weights that change those of another model."""
STORE = "coterie.json"
"""What a repository has that holds a store, and no checkpoint."""


def unread_format(
    name: str, files: Iterable[str], *, directory: Path | None = None, base_models: tuple[str, ...] = ()
) -> UnsupportedError | None:
    """The error for a checkpoint whose files are of another format; None if they are not known to be.

    Args:
        name: The checkpoint, for the message.
        files: Names of its files.
        directory: Where it is, or will be; None if only its list of files was read.
        base_models: Ids of the models that it says it was made from.
    """
    names = sorted(files)
    instead = f"Use the model that it was made from: {' or '.join(base_models[:3])}." if base_models else None
    facts = {"repo_id": name} if directory is None else {"path": directory}
    if STORE in names:
        return UnsupportedError(
            f"{name} is a store, and a checkpoint is needed here.",
            advice=instead or "Name the checkpoint that the store was made from.",
            **facts,
        )
    weights = [one for one in names if one.endswith((".safetensors", ".safetensors.index.json"))]
    if any(not PurePosixPath(one).name.startswith("adapter_") for one in weights):
        return None
    if ADAPTER in names:
        return UnsupportedError(
            f"{name} is an adapter, a change to another model, and not a model.",
            advice=instead or "Use that model, or merge the adapter into it with peft's merge_and_unload.",
            **facts,
        )
    for form in _FORMATS:
        found = next((one for one in names if any(fnmatch(one.lower(), pattern) for pattern in form.patterns)), None)
        if found is not None:
            if form.patterns is _GGUF and directory is not None and (directory / found).is_file():
                return gguf_error(directory / found)  # the file itself may say what it was made from
            return UnsupportedError(
                f"{name} has its weights in {found}, {form.name}; Coterie reads safetensors files.",
                advice=instead or form.advice,
                file=found,
                **facts,
            )
    return UnsupportedError(f"{name} has no weights in safetensors files.", advice=instead or _WHOLE, **facts)
