"""A full-size model as a GGUF file for llama.cpp: every matrix in Q4_0, routers and norms in F32.

llama.cpp's own recipe of that name keeps the output matrix in Q6_K, 2 bits more. Q4_0 it is here because it holds the
same values as the store does, and reads fewer bytes: what is compared is engines, not recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from fullsize.coded import BLOCK, BLOCK_BYTES, CodedMatrix
from fullsize.gguf_file import F32, MOSTLY_Q4_0, Q4_0, GgufTensor, Value, write_gguf
from fullsize.model import DenseTensor, FullSizeModel
from fullsize.walk import text_of

RMS_EPSILON = 1e-6
ROPE_THETA = 1e6
CONTEXT = 32768

_NORMAL_TOKEN = 1
_ROWS = 4096


def write_as_gguf(path: Path, model: FullSizeModel, name: str) -> None:
    """Writes the file, or goes on with one that was interrupted; nothing is done if it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, _metadata(model, name), [*_dense(model), *_experts(model)])


def _metadata(model: FullSizeModel, name: str) -> dict[str, Value]:
    d = model.dimensions
    own: dict[str, Value] = {
        "block_count": d.layers,
        "context_length": CONTEXT,
        "embedding_length": d.hidden,
        "feed_forward_length": 4 * d.expert_hidden,
        "expert_feed_forward_length": d.expert_hidden,
        "expert_count": d.experts,
        "expert_used_count": d.top_k,
        "attention.head_count": d.heads,
        "attention.head_count_kv": d.kv_heads,
        "attention.key_length": d.head_dim,
        "attention.value_length": d.head_dim,
        "attention.layer_norm_rms_epsilon": RMS_EPSILON,
        "rope.freq_base": ROPE_THETA,
        "vocab_size": d.vocabulary,
    }
    return {
        "general.architecture": "qwen3moe",
        "general.name": name,
        "general.file_type": MOSTLY_Q4_0,
        "general.quantization_version": 2,
        **{f"qwen3moe.{key}": value for key, value in own.items()},
        # Whole tokens are matched from the left, so that three letters are always one token.
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": [text_of(token) for token in range(d.vocabulary)],
        "tokenizer.ggml.token_type": [_NORMAL_TOKEN] * d.vocabulary,
        "tokenizer.ggml.add_bos_token": False,
    }


def _dense(model: FullSizeModel) -> Iterator[GgufTensor]:
    for tensor in model.dense():
        if tensor.kind == "coded":
            chunks = partial(_coded_chunks, model, tensor)
            yield GgufTensor(
                name=tensor.gguf, shape=tensor.shape, type=Q4_0, nbytes=_nbytes(tensor.shape), chunks=chunks
            )
        else:
            yield GgufTensor(
                name=tensor.gguf,
                shape=tensor.shape,
                type=F32,
                nbytes=4 * math.prod(tensor.shape),
                chunks=partial(_plain_chunks, model, tensor),
            )


def _experts(model: FullSizeModel) -> Iterator[GgufTensor]:
    d = model.dimensions
    shapes: dict[Literal["gate", "up", "down"], tuple[int, int]] = {
        "gate": (d.expert_hidden, d.hidden),
        "up": (d.expert_hidden, d.hidden),
        "down": (d.hidden, d.expert_hidden),
    }
    for layer in range(d.layers):
        for name, shape in shapes.items():
            yield GgufTensor(
                name=f"blk.{layer}.ffn_{name}_exps.weight",
                shape=(d.experts, *shape),
                type=Q4_0,
                nbytes=d.experts * _nbytes(shape),
                chunks=partial(_expert_chunks, model, layer, name),
            )


def _nbytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) // BLOCK * BLOCK_BYTES


def _coded_chunks(model: FullSizeModel, tensor: DenseTensor) -> Iterator[memoryview]:
    matrix: CodedMatrix = model.coded(tensor)
    for first in range(0, matrix.shape[0], _ROWS):
        yield matrix.rows(slice(first, first + _ROWS)).q4_0().reshape(-1).data


def _plain_chunks(model: FullSizeModel, tensor: DenseTensor) -> Iterator[bytes]:
    yield model.plain(tensor).tobytes()


def _expert_chunks(model: FullSizeModel, layer: int, name: Literal["gate", "up", "down"]) -> Iterator[memoryview]:
    for expert in range(model.dimensions.experts):
        yield model.expert_matrix(layer, expert, name).q4_0().reshape(-1).data
