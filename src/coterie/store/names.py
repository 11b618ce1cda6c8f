"""Which file names a store may have, and what each is for."""

from __future__ import annotations

import re

from coterie.spec import BankKey

MANIFEST = "coterie.json"
LOCK = ".coterie.lock"
JOURNAL = ".coterie.journal"
CALIBRATION = ".coterie.calibration"
"""A directory with what calibration keeps while the store is written."""
RECEIVED = ".coterie.received"
"""A list of what was read over the network for a store that is not finished."""
EXPERTS = "experts"
DENSE_INDEX = "dense.safetensors.index.json"

CARD = "README.md"
"""A model's card. Of a store that was made by `coterie fit`, that card has what follows in words."""
CARD_FOLLOWS = "The card of the model that this store was made of follows."
"""What stands in the card of a fitted store before that of its source."""

FIT_FACTS = "coterie-fit.json"
"""What a fit found: what the store was made for, and what it loses. It is about this store, and no other."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Components and banks."""

MAX_LAYER = 99_999
MAX_SEGMENT = 99_999

MAX_SIDE_FILE_BYTES = 256 * 2**20
"""Of a file that is copied beside the tensors."""

_SEGMENT = re.compile(
    rf"{EXPERTS}/(?P<component>{NAME.pattern})/(?P<bank>{NAME.pattern})-layer-(?P<layer>[0-9]{{3,5}})"
    r"(?:\.(?P<number>[1-9][0-9]{0,4}))?\.safetensors"
)
_DENSE = re.compile(r"dense(?:-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_SIDE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]{0,127}")
_WEIGHT_SUFFIXES = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle",
    ".h5", ".msgpack", ".gguf", ".npy", ".npz", ".py", ".so",
)  # fmt: skip


def segment_file(key: BankKey, number: int) -> str:
    """The file of a bank's segment: number 0 from the first extraction, 1 and up from each growth."""
    suffix = f".{number}" if number else ""
    return f"{EXPERTS}/{key}{suffix}.safetensors"


def segment_of(name: str) -> tuple[BankKey, int] | None:
    """The bank and number for which :func:`segment_file` gives ``name`` (relative, with slashes); None for others."""
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return None
    key = BankKey(match["component"], int(match["layer"]), match["bank"])
    number = int(match["number"] or 0)
    return (key, number) if name == segment_file(key, number) else None


def is_segment_file(name: str) -> bool:
    """Whether ``name`` is one that :func:`segment_file` can give."""
    return segment_of(name) is not None


def dense_files(count: int) -> tuple[str, ...]:
    """The names of ``count`` dense shards, in order."""
    if count == 1:
        return ("dense.safetensors",)
    return tuple(f"dense-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))


def is_dense_file(name: str) -> bool:
    """Whether ``name`` is that of a dense shard or of the index of shards."""
    return name == DENSE_INDEX or _DENSE.fullmatch(name) is not None


def partial_file(name: str) -> str:
    """The temporary name, in the same directory, under which ``name`` is written until it is complete."""
    directory, slash, last = name.rpartition("/")
    return f"{directory}{slash}.{last}.partial"


def final_file(name: str) -> str | None:
    """The name for which :func:`partial_file` gives ``name``, or None if that is no temporary name."""
    directory, slash, last = name.rpartition("/")
    if not (last.startswith(".") and last.endswith(".partial")):
        return None
    return f"{directory}{slash}{last.removeprefix('.').removesuffix('.partial')}"


def is_partial_file(name: str) -> bool:
    """Whether ``name`` is one that :func:`partial_file` gives."""
    return final_file(name) is not None


def side_file_problem(name: str) -> str | None:
    """Why ``name`` cannot be a file copied beside the tensors, or None if it can.

    Weights and code are refused: a plain ``from_pretrained`` on a store must fail, and nothing in a store is run.
    """
    parts = name.split("/")
    if len(parts) > 4 or not all(_SIDE_PART.fullmatch(part) for part in parts):
        return "it is not a plain relative path of at most four parts"
    if parts[0].casefold() == EXPERTS or name.casefold() == MANIFEST:
        return "the name is reserved"
    if name.casefold().endswith(_WEIGHT_SUFFIXES):
        return "files with weights or code cannot be copied into a store"
    return None
