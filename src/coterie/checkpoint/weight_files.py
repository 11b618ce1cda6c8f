"""Which files of a checkpoint are its weights, decided as transformers' ``from_pretrained`` decides it.

The same for a directory and for a repository: whoever asks says which files there are, and how one is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from coterie.checkpoint.formats import unread_format
from coterie.errors import CheckpointFileError, UnsupportedError
from coterie.files.json_text import JsonLimits, read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_KEY = "transformers_weights"
_INDEX_END = ".safetensors.index.json"
_SHARE = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors$")
_LONGEST_PATH, _LONGEST_NAME = 1024, 255
_INDEX_LIMITS = JsonLimits(nbytes=64 * 2**20, depth=8, values=2_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The files with the weights.

    Attributes:
        shards: Their names relative to the checkpoint, in the order in which transformers reads them: of a tensor that
            several have, the last one counts.
        index: Name of the index, or None if there is one file.
        weight_map: What the index says: tensor → shard.
        dtype: The dtype that the index states for a model whose configuration states none, or None.
    """

    shards: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None


def weights_name(named: object, path: Path, has: Callable[[str], bool]) -> str | None:
    """The file with the weights, or their index: what the configuration names, else the single file, else the index.

    Args:
        named: What the configuration of the model says under ``transformers_weights``, or None.
        path: Where ``config.json`` is, for messages.
        has: Whether the checkpoint has a file of this name.

    Returns:
        Its name, or None if there is none; a name that the configuration gives need not exist.

    Raises:
        UnsupportedError: If the configuration names a file of another kind.
        CheckpointFileError: If it names one outside the checkpoint.
    """
    if named is None:
        return next((name for name in (SINGLE, INDEX) if has(name)), None)
    if not isinstance(named, str) or not named.endswith((".safetensors", _INDEX_END)):
        raise UnsupportedError(
            f"{path} says that the weights are in {ascii(named)[:80]} ({_KEY}), which is no safetensors file or index.",
            advice=f"Name a .safetensors file or its index, or remove {_KEY}.",
            path=path,
            key=_KEY,
        )
    if not is_inside(named):
        raise CheckpointFileError(
            f"{path} names a file outside the checkpoint: {ascii(named)[:80]} ({_KEY}).",
            advice="Download it again.",
            path=path,
            key=_KEY,
        )
    return named


def refuse_distributed(directory: Path, files: Collection[str]) -> None:
    """Refuses a checkpoint that was saved by several machines, each its share: transformers opens that before all else.

    Args:
        directory: The checkpoint.
        files: Names of its files.

    Raises:
        UnsupportedError: Naming one of the shares.
    """
    share = next((name for name in sorted(files) if _SHARE.match(name)), None)
    if share is not None:
        raise UnsupportedError(
            f"{directory / share} is one machine's share of a distributed checkpoint, which is not supported.",
            advice="Save it with transformers' save_pretrained; or remove the shares if other files are meant.",
            path=directory / share,
        )


def is_index(name: str) -> bool:
    """Whether a file that :func:`weights_name` gives is an index of shards."""
    return name.endswith(_INDEX_END)


def read_index(path: Path, name: str) -> WeightFiles:
    """Reads an index.

    Args:
        path: The file, which has to be here.
        name: Its name relative to the checkpoint.

    Raises:
        CheckpointFileError: If it is missing, malformed, or names a file outside the checkpoint.
    """
    advice = "Download it again."
    try:
        raw = read_json_object(path, limits=_INDEX_LIMITS, advice=advice)
    except FileNotFoundError:
        raise CheckpointFileError(f"{path} does not exist.", advice=advice, path=path) from None
    shards = raw.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointFileError(
            f"{path} is not a valid index: weight_map is not an object of file names.",
            advice=advice,
            path=path,
            key="weight_map",
        )
    files = sorted(set(shards.values()))
    for file in files:
        if not is_inside(file):
            raise CheckpointFileError(
                f"{path} names a file outside the checkpoint: {ascii(file)[:80]}.",
                advice=advice,
                path=path,
                key="weight_map",
            )
        if not file.endswith(".safetensors"):
            raise UnsupportedError(
                f"{path} names {ascii(file)[:80]}, which is no safetensors file.",
                advice="Pass a checkpoint in safetensors format.",
                path=path,
                key="weight_map",
            )
    metadata = raw.get("metadata")
    stated = metadata.get("dtype") if isinstance(metadata, dict) else None
    if stated is not None and not isinstance(stated, str):
        raise CheckpointFileError(
            f"{path} states a dtype that is no text: {ascii(stated)[:40]} (metadata.dtype).",
            advice=advice,
            path=path,
            key="metadata.dtype",
        )
    return WeightFiles(shards=tuple(files), index=name, weight_map=shards, dtype=stated)


def is_inside(name: str) -> bool:
    """Whether a name is that of a file within the checkpoint, as any system understands it."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or not name.isprintable() or {"..", "\\", ":"} & {*parts, *name}:
        return False
    return len(name) < _LONGEST_PATH and all(len(part.encode()) <= _LONGEST_NAME for part in parts)


def check_weight_map(files: WeightFiles, directory: Path, found: Collection[str]) -> None:
    """Compares an index with the shards that it names.

    A tensor that lies in another of the shards than the index says, or that the index does not list, is read by
    transformers all the same.

    Args:
        files: The index.
        directory: The checkpoint.
        found: Names of the tensors of all shards.

    Raises:
        CheckpointFileError: If no shard has a tensor that the index lists.
    """
    for name, shard in files.weight_map.items():
        if name not in found:
            raise CheckpointFileError(
                f"{files.index} says that {name!r} is in {shard}, which does not have it.",
                advice="The shards and the index are of different downloads; download both again.",
                path=directory / str(files.index),
                tensor=name,
            )


def no_weights(
    name: str, directory: Path, files: Collection[str], *, base_models: tuple[str, ...] = ()
) -> CheckpointFileError | UnsupportedError:
    """The error for a checkpoint whose weights are not where they are looked for; says what there is instead.

    Args:
        name: The checkpoint, for the message.
        directory: Where it is.
        files: Names of its files.
        base_models: Ids of the models that it says it was made from.
    """
    lost = next((file for file in files if file in (SINGLE, INDEX)), None)
    if lost is not None:
        return CheckpointFileError(
            f"{directory / lost} is not a file, or a link to none.", advice="Download it again.", path=directory / lost
        )
    other = unread_format(name, files, directory=directory, base_models=base_models)
    if other is not None:
        return other
    found = min(file for file in files if file.endswith((".safetensors", _INDEX_END)))
    return CheckpointFileError(
        f"{name} has neither {SINGLE} nor {INDEX}. It has {found}, which transformers does not open by itself either.",
        advice="Rename the file that you mean to model.safetensors, or name it in config.json as transformers_weights.",
        path=directory,
    )
