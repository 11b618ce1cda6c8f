"""A full-size model as a Coterie store: experts and linear layers in scheme int4, the rest in bfloat16."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from coterie.quant import ALIGNMENT, SCHEMES, StoredMatrix, stored_linear
from coterie.spec import BankKey, RecordLayout
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import (
    BankPlan,
    BankWriter,
    DenseTensor,
    ModelFacts,
    PlannedExpert,
    SourceFacts,
    StorePlan,
    StoreWriter,
)
from fullsize import model as weights
from fullsize.coded import CodedMatrix
from fullsize.model import FullSizeModel
from fullsize.progress import Progress
from fullsize.tokenizer import tokenizer_files

_SCHEME = "int4"
_ROWS = 4096


def write_as_store(path: Path, model: FullSizeModel, name: str) -> None:
    """Writes the store, or goes on with one that was interrupted; nothing is done if it is there."""
    files = side_files(model)
    dense = [one for tensor in model.dense() for one in _dense(model, tensor)]
    fill_store(path, _plan(model, name, tuple(files)), dense, files, lambda key: model)


def fill_store(
    path: Path,
    plan: StorePlan,
    dense: Sequence[DenseTensor],
    files: Mapping[str, bytes],
    model_of: Callable[[BankKey], FullSizeModel],
) -> None:
    """Writes a store, or goes on with one that was interrupted; nothing is done if it is there.

    Args:
        path: Its directory.
        plan: What it is to hold; experts in scheme int4.
        dense: Everything that is not an expert.
        files: The other files, by name.
        model_of: Gives the model whose experts a bank has.
    """
    dense_nbytes = sum(tensor.nbytes for tensor in dense)
    with StoreWriter.open(path, plan) as writer:
        missing = writer.missing_nbytes() + (0 if writer.dense_done else dense_nbytes)
        total = plan.expert_nbytes + dense_nbytes
        progress = Progress(path.name, total, total - missing)
        if not writer.dense_done:
            writer.write_dense(dense)
            progress.advance(dense_nbytes)
        for key in writer.missing_banks():
            with writer.bank(key) as bank:
                _write_bank(bank, model_of(key), progress)
        for file in writer.missing_files():
            writer.write_file(file, files[file])
        writer.finish()


def side_files(model: FullSizeModel) -> dict[str, bytes]:
    """Configuration and tokenizer."""
    # Nothing ends the walk: no token is the end of a text.
    config = model.dimensions.config() | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        **tokenizer_files(model.dimensions.vocabulary),
    }


def _layout(model: FullSizeModel) -> RecordLayout:
    d = model.dimensions
    shapes = {"gate_up_proj": (2 * d.expert_hidden, d.hidden), "down_proj": (d.hidden, d.expert_hidden)}
    matrices = [
        StoredMatrix(parameter=name, shape=shape, scheme=SCHEMES[_SCHEME], transposed=False)
        for name, shape in shapes.items()
    ]
    return RecordLayout.build(f"gate_up|down;{_SCHEME}", [field for matrix in matrices for field in matrix.fields()])


def _plan(model: FullSizeModel, name: str, files: tuple[str, ...]) -> StorePlan:
    layout = _layout(model)
    d = model.dimensions
    experts = tuple(PlannedExpert(expert=e, scheme=_SCHEME, layout=layout) for e in range(d.experts))
    facts = f"{d} seed {model.seed}"
    fingerprint = str(xxhash.xxh3_128_hexdigest(facts.encode()))
    return StorePlan(
        model=ModelFacts(
            class_name="Qwen3MoeForCausalLM", model_type="qwen3_moe", component=None, identity=fingerprint
        ),
        source=SourceFacts(name=name, revision=None, integrity=fingerprint),
        banks=tuple(
            BankPlan(
                key=BankKey("text", layer, "mlp"),
                num_experts=d.experts,
                top_k=d.top_k,
                sources=tuple(
                    f"model.layers.{layer}.mlp.experts.*.{matrix}_proj.weight" for matrix in ("gate", "up", "down")
                ),
                experts=experts,
            )
            for layer in range(d.layers)
        ),
        files=files,
        dense_schemes=DenseSchemes(_SCHEME),
    )


def _write_bank(bank: BankWriter, model: FullSizeModel, progress: Progress) -> None:
    layout = bank.layout(bank.experts[0])
    # A mapping of its own starts on a page, as direct writes need.
    record = np.frombuffer(mmap.mmap(-1, layout.nbytes), dtype=np.uint8)
    for number in bank.experts:
        expert = model.expert(bank.key.layer, number)
        both = CodedMatrix(
            np.concatenate([expert.gate.packed, expert.up.packed]),
            np.concatenate([expert.gate.scales, expert.up.scales]),
        )
        parts = (*both.int4(), *expert.down.int4())
        for field, part in zip(layout.fields, parts, strict=True):
            record[field.offset : field.offset + field.nbytes] = part.reshape(-1).view(np.uint8)
        bank.write(number, record.data)
        progress.advance(layout.nbytes)


def _dense(model: FullSizeModel, tensor: weights.DenseTensor) -> Iterator[DenseTensor]:
    """How a tensor that is not an expert is stored: a linear layer's weight as codes and scales."""
    if tensor.kind != "coded" or "embed_tokens" in tensor.name:
        chunks = partial(_coded_chunks if tensor.kind == "coded" else _plain_chunks, model, tensor)
        yield DenseTensor(name=tensor.name, dtype="BF16", shape=tensor.shape, chunks=chunks)
        return
    rows, columns = tensor.shape
    matrix = stored_linear(tensor.name, rows, columns, SCHEMES[_SCHEME])
    if matrix is None:
        raise ValueError(f"{tensor.name} {tensor.shape} cannot be stored as {_SCHEME}")
    for part, (name, dtype, shape) in enumerate(matrix.fields()):
        chunks = partial(_scheme_chunks, model, tensor, part)
        yield DenseTensor(name=name, dtype=dtype, shape=shape, chunks=chunks, alignment=ALIGNMENT)


def _scheme_chunks(model: FullSizeModel, tensor: weights.DenseTensor, part: int) -> Iterator[bytes]:
    matrix = model.coded(tensor)
    for first in range(0, matrix.shape[0], _ROWS):
        yield matrix.rows(slice(first, first + _ROWS)).int4()[part].tobytes()


def _coded_chunks(model: FullSizeModel, tensor: weights.DenseTensor) -> Iterator[bytes]:
    matrix = model.coded(tensor)
    for first in range(0, matrix.shape[0], _ROWS):
        yield matrix.rows(slice(first, first + _ROWS)).bf16().tobytes()


def _plain_chunks(model: FullSizeModel, tensor: weights.DenseTensor) -> Iterator[bytes]:
    yield (model.plain(tensor).view(np.uint32) >> 16).astype(np.uint16).tobytes()
