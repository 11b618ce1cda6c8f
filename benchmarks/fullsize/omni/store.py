"""A whole omni model as a Coterie store, planned as :func:`coterie.extract` plans it and filled with drawn weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from coterie.extraction.whole import plan_whole
from coterie.origins import CheckpointOrigin
from coterie.quant import SCHEMES, linear_names
from coterie.store import DenseTensor
from fullsize.as_store import fill_store
from fullsize.omni.configuration import OMNI_SHAPES
from fullsize.omni.hollow import write_hollow_checkpoint
from fullsize.omni.weights import OmniWeights

EXPERTS = "int4"


def write_omni_store(path: Path, shape: str, dense_scheme: str | None = None) -> None:
    """Writes the store, or goes on with one that was interrupted; nothing is done if it is there.

    Args:
        path: Its directory.
        shape: Name of one of :data:`OMNI_SHAPES`.
        dense_scheme: As ``coterie extract --dense-scheme`` takes it; None for what that does by default.
    """
    config = OMNI_SHAPES[shape]()
    weights = OmniWeights(config)
    with tempfile.TemporaryDirectory() as folder:
        origin = CheckpointOrigin.open(write_hollow_checkpoint(Path(folder) / shape, config))
        made = plan_whole(origin, EXPERTS, dense_scheme)
        files = {name: file.read_bytes() for name, file in made.side_files.items()} | dict(made.changed_files)
    # What the plan has are fingerprints of holes.
    drawn = str(xxhash.xxh3_128_hexdigest(str(config).encode()))
    plan = replace(
        made.store,
        model=replace(made.store.model, identity=drawn),
        source=replace(made.store.source, integrity=drawn),
    )
    fill_store(path, plan, list(_filled(made.dense, weights)), files, lambda key: weights.part(key.component))


def _filled(planned: tuple[DenseTensor, ...], weights: OmniWeights) -> Iterator[DenseTensor]:
    """The tensors outside experts, each with its drawn content."""
    by_name = {tensor.name: tensor for tensor in planned}
    parts: dict[str, tuple[str, str, int]] = {}
    for scheme in SCHEMES.values():
        for name, pair in linear_names(by_name, scheme).items():
            parts |= {part: (name, scheme.name, number) for number, part in enumerate(pair)}
    for tensor in planned:
        if tensor.name not in parts:
            yield replace(tensor, chunks=partial(_plain, weights, tensor))
            continue
        name, scheme_name, number = parts[tensor.name]
        rows, columns = _shape(name, by_name, scheme_name)
        yield replace(tensor, chunks=partial(_part, weights, name, rows, columns, scheme_name, number))


def _shape(name: str, by_name: Mapping[str, DenseTensor], scheme: str) -> tuple[int, int]:
    """Rows and columns of a weight that is in a scheme; those of the models here are even."""
    form = SCHEMES[scheme].form
    rows, elements = by_name[name + form.ends[0][0]].shape
    return rows, form.values(elements)


def _plain(weights: OmniWeights, tensor: DenseTensor) -> Iterator[bytes]:
    for bits in weights.plain(tensor.name, tuple(tensor.shape)):
        yield bits.tobytes()


def _part(weights: OmniWeights, name: str, rows: int, columns: int, scheme: str, number: int) -> Iterator[bytes]:
    yield np.ascontiguousarray(weights.stored(name, rows, columns, scheme)[number]).tobytes()
