"""Weights of linear layers outside experts, quantised while they are read, a few rows at a time.

A weight becomes two tensors, codes and scales. Both come of the same work, and codes lie before scales in the store:
what is found for the scales while the codes are written, an eighth as much or less, is kept until its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

import torch

from coterie.checkpoint import TensorInfo, read_tensor
from coterie.errors import CheckpointFileError, QuantisationError
from coterie.quant import ALIGNMENT, Scheme, StoredMatrix, dequantise_fp8
from coterie.quant.scheme import Parts
from coterie.spec import DTYPE_BYTES
from coterie.spec.encodings import FP8
from coterie.store import DenseTensor

_VALUES = 2**20
"""Weights that are in memory at once."""

ReadRows = Callable[[], Iterator[torch.Tensor]]
"""Gives a weight as matrices of some of its rows, in order."""


class StoredPair:
    """Codes and scales of one weight, each as a tensor that is to be written.

    Args:
        matrix: How the weight is stored.
        parts: Gives codes and scales of some rows after the other.
    """

    def __init__(self, matrix: StoredMatrix, parts: Callable[[], Iterator[Parts]]) -> None:
        self._matrix = matrix
        self._read = parts
        self._scales: list[bytes] | None = None

    def tensors(self) -> tuple[DenseTensor, DenseTensor]:
        """The codes, then the scales. Each can be read any number of times."""
        codes, scales = (
            DenseTensor(name=name, dtype=dtype, shape=shape, chunks=chunks, alignment=ALIGNMENT)
            for (name, dtype, shape), chunks in zip(
                self._matrix.fields(), (self._read_codes, self._read_scales), strict=True
            )
        )
        return codes, scales

    def _read_codes(self) -> Iterator[bytes]:
        scales: list[bytes] = []
        for codes, found in self._parts():
            scales.append(found)
            yield codes
        self._scales = scales

    def _read_scales(self) -> Iterator[bytes]:
        kept, self._scales = self._scales, None
        if kept is None:
            # The codes were written before an interruption, or into another file by somebody else.
            kept = [scales for _, scales in self._parts()]
        yield from kept

    def _parts(self) -> Iterator[tuple[bytes, bytes]]:
        for codes, scales in self._read():
            yield _bytes(codes), _bytes(scales)


def quantised_pair(matrix: StoredMatrix, rows: ReadRows) -> StoredPair:
    """Codes and scales of one weight that is quantised while it is read.

    Args:
        matrix: How the weight is stored.
        rows: Reads it.
    """

    def parts() -> Iterator[Parts]:
        first = 0
        for some in rows():
            try:
                yield matrix.quantise(some)
            except QuantisationError as error:
                raise _named(matrix, error, first) from error
            first += len(some)

    return StoredPair(matrix, parts)


def _named(matrix: StoredMatrix, error: QuantisationError, first: int) -> QuantisationError:
    """The same error about rows that begin with this one, with the weight's name."""
    name, row = matrix.parameter, error.facts.get("row")
    if not isinstance(row, int):
        return QuantisationError(f"{name}: {error.message}", advice=error.advice, tensor=name)
    return QuantisationError(
        f"Row {first + row} of {name} has a weight that is infinite or not a number; {matrix.scheme.name} cannot store "
        "it.",
        advice=error.advice,
        tensor=name,
        row=first + row,
    )


def _bytes(part: torch.Tensor) -> bytes:
    return part.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def plain_rows(info: TensorInfo) -> Iterator[torch.Tensor]:
    """A weight as its file has it, some rows at a time.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    yield from (read_tensor(part) for part in _bands(info, max(1, _VALUES // info.shape[1])))


def fp8_rows(
    weight: TensorInfo, scales: TensorInfo, dtype: torch.dtype, block: tuple[int, int] | None
) -> Iterator[torch.Tensor]:
    """An FP8 weight dequantised as it is for computing, some rows at a time.

    Args:
        weight: The FP8 weights.
        scales: Their scales.
        dtype: That the model computes in.
        block: Rows and columns of a block that the configuration states.

    Raises:
        CheckpointFileError: If it cannot be read, or its scales do not fit.
    """
    grid = read_tensor(scales)
    try:
        if grid.dim() == 2 and FP8.divides(weight.shape, tuple(grid.shape)):
            height = weight.shape[0] // len(grid)
            blocks = max(1, _VALUES // (height * weight.shape[1]))
            for number, part in enumerate(_bands(weight, height * blocks)):
                own = grid[number * blocks : (number + 1) * blocks]
                yield dequantise_fp8(read_tensor(part), own, dtype)
        else:
            yield dequantise_fp8(read_tensor(weight), grid, dtype, block)
    except ValueError as error:
        raise CheckpointFileError(
            f"{weight.name!r} cannot be dequantised: {error}.",
            advice="Compare weight_block_size in config.json with the shapes of the scales.",
            path=weight.path,
            tensor=weight.name,
        ) from error


def stored_rows(codes: TensorInfo, scales: TensorInfo, scheme: Scheme, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A weight that is in a scheme already, dequantised, some rows at a time.

    Args:
        codes: Its codes [N, …].
        scales: Their scales [N, …].
        scheme: The scheme.
        dtype: That the model computes in.

    Raises:
        CheckpointFileError: If it cannot be read.
    """
    columns = scheme.form.values(codes.shape[1])
    height = max(1, _VALUES // columns)
    for pair in zip(_bands(codes, height), _bands(scales, height), strict=True):
        yield scheme.dequantise((read_tensor(pair[0]), read_tensor(pair[1])), columns, dtype)


def _bands(info: TensorInfo, height: int) -> Iterator[TensorInfo]:
    """The tensor in pieces of some rows, as tensors of their own."""
    rows, *rest = info.shape
    nbytes = prod(rest) * DTYPE_BYTES[info.dtype]
    for first in range(0, rows, height):
        count = min(height, rows - first)
        yield replace(info, shape=(count, *rest), offset=info.offset + first * nbytes, nbytes=count * nbytes)
