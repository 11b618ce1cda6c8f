"""The bytes of dense tensors, straight from files in pieces, so that no tensor is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from coterie.checkpoint import TensorInfo
from coterie.errors import CheckpointFileError
from coterie.extraction.linears import QuantisedPair, ReadRows, fp8_rows, plain_rows, stored_rows
from coterie.hf.linears import linear_weights
from coterie.hf.quantised import fold_names
from coterie.origins import Cut, Origin
from coterie.quant import ALIGNMENT, StoredMatrix, lossy_scheme, stored_linear
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.records import pieces_of
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.spec.scheme_names import check_made_here
from coterie.store import DenseTensor


def dense_tensors(origin: Origin, schemes: DenseSchemes = NATIVE_EVERYWHERE) -> tuple[DenseTensor, ...]:
    """Everything that is not an expert, under its names in the checkpoint; nothing is read yet.

    Args:
        origin: Where it comes from.
        schemes: In which the linear layers of each part are wanted; each weight then is two tensors, codes and scales.

    Raises:
        UsageError: If there is no such scheme.
    """
    matrices = quantised_linears(origin, schemes)
    scales_of = _fp8_scales(origin)
    taken = {*matrices, *(scales_of[name] for name in matrices if name in scales_of)}
    tensors: list[DenseTensor] = []
    for name in origin.model.keymap.dense:
        if name in matrices:
            tensors += QuantisedPair(matrices[name], _rows(origin, name, scales_of.get(name))).tensors()
        elif name in origin.linears:
            tensors += (as_stored(info, ALIGNMENT) for info in origin.linears[name].tensors)
        elif name not in taken:
            tensors.append(_tensor(origin, name))
    return tuple(tensors)


def quantised_linears(origin: Origin, schemes: DenseSchemes) -> dict[str, StoredMatrix]:
    """The weights that are quantised where linear layers outside experts are wanted in these schemes.

    Those of parts that are in their scheme already are not among them.

    Raises:
        UsageError: If there is no such scheme, or nothing is quantised to it.
    """
    fp8 = _fp8_scales(origin)
    found: dict[str, StoredMatrix] = {}
    for name, weight in linear_weights(origin.model.skeleton, origin.model.keymap).items():
        wanted = schemes.of(weight.part)
        scheme = None if wanted == origin.dense_schemes.of(weight.part) else lossy_scheme(wanted)
        matrix = None if scheme is None else stored_linear(name, *weight.shape, scheme)
        # What has another shape is found, and named, when the model is loaded.
        is_weight = name in origin.linears or _is_weight(origin.tensors[name], weight.shape, name in fp8)
        if matrix is not None and is_weight:
            check_made_here(wanted)
            found[name] = matrix
    return found


def parts_with_linears(origin: Origin) -> frozenset[str]:
    """The parts of a model whose linear layers may be in a scheme."""
    return frozenset(weight.part for weight in linear_weights(origin.model.skeleton, origin.model.keymap).values())


def _is_weight(info: TensorInfo, shape: tuple[int, int], is_fp8: bool) -> bool:
    dtype = TORCH_DTYPES[info.dtype]
    return info.shape == shape and (is_fp8 or (dtype.is_floating_point and dtype.itemsize > 1))


def _fp8_scales(origin: Origin) -> dict[str, str]:
    """Name of each FP8 weight → name of its scales; in a checkpoint of MXFP4, no linear layer has such."""
    folded = fold_names(origin.quantisation, {name: info.dtype for name, info in origin.tensors.items()})
    return dict(folded.parts.values())


def _rows(origin: Origin, name: str, scales: str | None) -> ReadRows:
    """Reads a weight from wherever the origin has it."""
    stored = origin.linears.get(name)

    def rows() -> Iterator[torch.Tensor]:
        if stored is not None:
            return stored_rows(*stored.tensors, stored.scheme, origin.model.dtype)
        origin.download([name] if scales is None else [name, scales])
        if scales is None:
            return plain_rows(origin.tensors[name])
        quantisation = origin.quantisation
        block = None if quantisation is None else quantisation.block
        return fp8_rows(origin.tensors[name], origin.tensors[scales], origin.model.dtype, block)

    return rows


def _tensor(origin: Origin, name: str) -> DenseTensor:
    def chunks() -> Iterator[memoryview]:
        origin.download([name])
        # Looked up now: where a tensor lies in its file is known only once the shard is here.
        return tensor_pieces(origin.tensors[name])

    info, cut = origin.tensors[name], origin.cuts.get(name)
    if cut is not None:
        return _cut_tensor(origin, name, cut)
    return DenseTensor(name=name, dtype=info.dtype, shape=info.shape, chunks=chunks)


def _cut_tensor(origin: Origin, name: str, cut: Cut) -> DenseTensor:
    def chunks() -> Iterator[bytes]:
        origin.download([name])
        yield cut.read(origin.tensors[name])

    info = origin.tensors[name]
    return DenseTensor(name=name, dtype=info.dtype, shape=cut.shape(info.shape), chunks=chunks)


def as_stored(info: TensorInfo, alignment: int = 1) -> DenseTensor:
    """A tensor of a file as one that is to be written."""
    return DenseTensor(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        chunks=lambda: tensor_pieces(info),
        alignment=alignment,
    )


def tensor_pieces(info: TensorInfo) -> Iterator[memoryview]:
    """The bytes of one tensor in order; a piece is valid until the next one is asked for.

    What was read leaves the page cache.

    Raises:
        CheckpointFileError: If the file cannot be read or is shorter than its header says.
    """
    position, end = info.offset, info.offset + info.nbytes
    try:
        for piece in pieces_of(info.source, position, info.nbytes):
            yield piece
            position += len(piece)
    except OSError as error:
        raise CheckpointFileError(
            f"{info.path} cannot be read: {error.strerror}.",
            advice="Check its permissions and the disk, then repeat the command: what is finished is kept.",
            path=info.path,
            tensor=info.name,
        ) from error
    if position < end:
        raise CheckpointFileError(
            f"{info.path} is truncated: {info.name!r} ends at byte {end}, the file at {position}.",
            advice="Download the file again, then repeat the command: what is finished is kept.",
            path=info.path,
            tensor=info.name,
            expected=end,
            got=position,
        )
