"""Memory of weights that come and go: addresses that stay, and the reading of what is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from coterie.cache.arena import AddressRange
from coterie.checkpoint import Postponing, TensorInfo
from coterie.errors import ReadError
from coterie.plan.huge_pages import HUGE_PAGE
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import round_up

_ALIGNMENT = 64
"""Of tensors, as torch aligns them: products round by where their operands lie."""


@dataclass(slots=True, kw_only=True)
class Weight:
    """A tensor whose values come and go.

    Attributes:
        info: Where they are read from.
        keeper: Who reads them.
        weight: The tensor, at an address that stays.
        record: Its memory.
        target: Its name in the model; None for codes and scales.
    """

    info: TensorInfo
    keeper: Postponing
    weight: torch.Tensor
    record: memoryview
    target: str | None = None


def reserve(wanted: list[tuple[TensorInfo, str | None]]) -> tuple[AddressRange, int, list[Weight]]:
    """Addresses for tensors, without memory, and has whoever keeps them hand these out."""
    offset, offsets = 0, []
    for info, _ in wanted:
        offsets.append(offset)
        offset = round_up(offset + info.nbytes, _ALIGNMENT)
    length = round_up(offset, 4096)
    memory = AddressRange(length)
    whole = length // HUGE_PAGE * HUGE_PAGE
    if whole:
        memory.advise("MADV_HUGEPAGE", memory.start, whole)
    tensors = []
    for (info, target), at in zip(wanted, offsets, strict=True):
        start, dtype = memory.start + at, TORCH_DTYPES[info.dtype]
        # Made in inference mode they could not be used outside it.
        with torch.inference_mode(False):
            flat = torch.frombuffer(memory.memory, dtype=dtype, count=prod(info.shape), offset=start)
            weight = flat.view(info.shape)
        record = memoryview(memory.memory)[start : start + info.nbytes]
        keeper: Any = info.keeper
        keeper.postpone(info, weight)
        tensors.append(Weight(info=info, keeper=keeper, weight=weight, record=record, target=target))
    return memory, length, tensors


def read_rows(info: TensorInfo, ids: Sequence[int], into: memoryview) -> None:
    """Reads rows of a tensor, one after the other.

    Raises:
        ReadError: If one cannot be read, or the file has changed.
    """
    nbytes = info.nbytes // info.shape[0]
    try:
        with closing(info.source.open("scattered")) as file:
            for id in ids:
                file.will_read(info.offset + id * nbytes, nbytes)
            for place, id in enumerate(ids):
                row, done = into[place * nbytes : (place + 1) * nbytes], 0
                while done < nbytes:
                    count = file.read_at(row[done:], info.offset + id * nbytes + done)
                    if not count:
                        raise OSError(None, "it ends too early")
                    done += count
    except OSError as error:
        raise ReadError(
            f"Row {id} of {info.name!r} in {info.path} cannot be read: {error.strerror or error}.",
            advice="Check the disk, and that nobody writes to the file; then open the model again.",
            path=info.path,
            tensor=info.name,
        ) from error


def read_now(one: Weight) -> torch.Tensor:
    """Its values, in memory of their own."""
    into = bytearray(one.info.nbytes)
    one.keeper.read_postponed([one.info], lambda info: memoryview(into))
    return torch.frombuffer(into, dtype=one.weight.dtype).view(one.weight.shape)
