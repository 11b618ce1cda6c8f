"""The bytes of dense tensors, straight from files in pieces, so that no tensor is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from coterie.checkpoint import TensorInfo
from coterie.errors import CheckpointFileError
from coterie.extraction.linears import QuantisedPair, ReadRows, fp8_rows, plain_rows, stored_rows
from coterie.extraction.quantising import check_smaller
from coterie.hf.linears import linear_weights
from coterie.hf.quantised import fold_names
from coterie.origins import Origin
from coterie.quant import ALIGNMENT, StoredMatrix, lossy_scheme, stored_linear
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.records import pieces_of
from coterie.spec.encodings import NATIVE
from coterie.store import DenseTensor


def dense_tensors(origin: Origin, scheme: str = NATIVE) -> tuple[DenseTensor, ...]:
    """Everything that is not an expert, under its names in the checkpoint; nothing is read yet.

    Args:
        origin: Where it comes from.
        scheme: In which weights of linear layers are wanted; each then is two tensors, codes and scales.

    Raises:
        UsageError: If there is no such scheme, or what there is has fewer bits.
    """
    have = origin.dense_scheme
    check_smaller("Linear layers outside experts are", have, scheme)
    pairs = origin.pairs
    plain = [name for name in origin.model.keymap.dense if name not in pairs]
    if scheme == have:
        parts = [info for pair in pairs.values() for info in pair]
        return (*(_tensor(origin, name) for name in plain), *(as_stored(info, ALIGNMENT) for info in parts))
    matrices = quantised_linears(origin, scheme)
    scales_of = _fp8_scales(origin)
    taken = {*matrices, *(scales_of[name] for name in matrices if name in scales_of)}
    tensors = [_tensor(origin, name) for name in plain if name not in taken]
    for name, matrix in matrices.items():
        tensors += QuantisedPair(matrix, _rows(origin, name, scales_of.get(name))).tensors()
    return tuple(tensors)


def quantised_linears(origin: Origin, scheme: str) -> dict[str, StoredMatrix]:
    """The weights that are quantised where linear layers outside experts are wanted in a scheme.

    Raises:
        UsageError: If there is no such scheme.
    """
    lossy = lossy_scheme(scheme)
    if lossy is None:
        return {}
    fp8 = _fp8_scales(origin)
    pairs = origin.pairs
    found: dict[str, StoredMatrix] = {}
    for name, shape in linear_weights(origin.model.skeleton, origin.model.keymap).items():
        matrix = stored_linear(name, *shape, lossy)
        # What has another shape is found, and named, when the model is loaded.
        if matrix is not None and (name in pairs or _is_weight(origin.tensors[name], shape, name in fp8)):
            found[name] = matrix
    return found


def _is_weight(info: TensorInfo, shape: tuple[int, int], is_fp8: bool) -> bool:
    dtype = TORCH_DTYPES[info.dtype]
    return info.shape == shape and (is_fp8 or (dtype.is_floating_point and dtype.itemsize > 1))


def _fp8_scales(origin: Origin) -> dict[str, str]:
    """Name of each FP8 weight → name of its scales; in a checkpoint of MXFP4, no linear layer has such."""
    folded = fold_names(origin.quantisation, {name: info.dtype for name, info in origin.tensors.items()})
    return dict(folded.parts.values())


def _rows(origin: Origin, name: str, scales: str | None) -> ReadRows:
    """Reads a weight from wherever the origin has it."""
    pairs = origin.pairs
    have = lossy_scheme(origin.dense_scheme)

    def rows() -> Iterator[torch.Tensor]:
        if name in pairs and have is not None:
            return stored_rows(*pairs[name], have, origin.model.dtype)
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

    info = origin.tensors[name]
    return DenseTensor(name=name, dtype=info.dtype, shape=info.shape, chunks=chunks)


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
