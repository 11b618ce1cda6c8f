"""Reads GGUF files by the format's definition, apart from the code that writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
TYPES = {0: (1, 4), 2: (32, 18)}
"""Elements and bytes of a block of F32 and Q4_0."""


@dataclass
class Gguf:
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_gguf(path: Path) -> Gguf:
    """All of a file; tensors as float32."""
    data = path.read_bytes()
    magic, version, tensor_count, pair_count = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal at
        length = take("<Q")
        at += length
        return data[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("<I"), take("<Q")
            return [value(inner) for _ in range(count)]
        return take(SCALARS[kind])

    metadata = {}
    for _ in range(pair_count):
        key = text()
        metadata[key] = value(take("<I"))
    infos = []
    for _ in range(tensor_count):
        name = text()
        shape = [take("<Q") for _ in range(take("<I"))][::-1]
        infos.append((name, shape, take("<I"), take("<Q")))
    start = at + -at % 32
    tensors = {}
    for name, shape, kind, offset in infos:
        elements, nbytes = TYPES[kind]
        count = int(np.prod(shape)) // elements
        raw = np.frombuffer(data, dtype=np.uint8, count=count * nbytes, offset=start + offset)
        tensors[name] = (raw.view(np.float32) if kind == 0 else dequantised(raw.reshape(-1, 18))).reshape(shape)
    return Gguf(metadata, tensors)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """``dequantize_row_q4_0`` of ggml, a weight at a time as it is written there."""
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    out = np.empty((len(blocks), 32), dtype=np.float32)
    for j in range(16):
        out[:, j] = ((blocks[:, 2 + j] & 0x0F).astype(np.int32) - 8) * scales[:, 0]
        out[:, j + 16] = ((blocks[:, 2 + j] >> 4).astype(np.int32) - 8) * scales[:, 0]
    return out
