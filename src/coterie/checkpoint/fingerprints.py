"""What of a checkpoint's files goes into its fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from coterie.errors import CheckpointFileError
from coterie.files.json_text import CONFIGURATION
from coterie.files.regular import read_bounded, regular_file
from coterie.hf.banks import ExpertBank
from coterie.spec import BankKey

_SAMPLE = 65536

Router = tuple[str, tuple[int, ...], bytes | memoryview]
"""A tensor of a router: its name in the model, its shape, its bytes."""


def router_names(
    banks: Iterable[ExpertBank], dense: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[BankKey, list[str]]:
    """The dense tensors of each bank's router: those beside the experts that have one row per expert.

    Args:
        banks: The banks.
        dense: Name in the checkpoint → name in the model, of everything that is not an expert.
        shapes: Name in the checkpoint → shape.
    """
    found: dict[BankKey, list[str]] = {}
    for bank in banks:
        block = bank.router_block
        for parent in (block, block.rpartition(".")[0]):
            found[bank.key] = sorted(
                name
                for name, target in dense.items()
                if target.startswith(f"{parent}.") and shapes[name][:1] == (bank.num_experts,)
            )
            if found[bank.key]:
                break
    return found


def model_identity(class_name: str, routers: Iterable[tuple[BankKey, Iterable[Router]]]) -> str:
    """Fingerprint of a model: its class and its routers' bytes, the same for every store of it.

    Args:
        class_name: Its transformers class.
        routers: Bank → tensors of its router, in ascending order of both.
    """
    digest = xxhash.xxh3_128(class_name.encode())
    for key, tensors in routers:
        digest.update(str(key).encode())
        for target, shape, data in tensors:
            digest.update(f"{target} {shape}".encode())
            digest.update(data)
    return digest.hexdigest()


def content_of(path: Path) -> bytes:
    """The whole of a small file.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    try:
        return read_bounded(path, CONFIGURATION.nbytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def samples_of(path: Path) -> bytes:
    """Start, middle and end of a shard, and its size.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    try:
        with regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            parts = []
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                file.seek(start)
                parts.append(file.read(_SAMPLE))
    except OSError as error:
        raise _unreadable(path, error) from error
    return b"".join(parts) + str(size).encode()


def _unreadable(path: Path, error: OSError) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} cannot be read: {error.strerror}.", advice="Check that it is still there.", path=path
    )
