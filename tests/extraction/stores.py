"""Looking at what extraction wrote."""

from __future__ import annotations

from pathlib import Path

import torch

from coterie.checkpoint import Checkpoint
from coterie.spec import ExpertKey
from coterie.store import Store


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every file with its bytes and every directory with None."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def present(root: Path) -> dict[int, set[int]]:
    """The experts of each layer that a store has."""
    store = Store.open(root)
    found: dict[int, set[int]] = {key.layer: set() for key in store.banks}
    for key in store.keys():
        found[key.layer].add(key.expert)
    return found


def decoded(checkpoint: Checkpoint, key: ExpertKey) -> bytes:
    """The record as transformers' own conversion gives it, padding zero."""
    record = bytearray(checkpoint.layout(key).nbytes)
    checkpoint.read_into(key, memoryview(record))
    return bytes(record)


def stored(store: Store, key: ExpertKey) -> bytes:
    record = bytearray(store.layout(key).nbytes)
    store.read_into(key, memoryview(record))
    return bytes(record)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
