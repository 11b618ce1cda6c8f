"""A slot: a piece of memory that holds one record, and the tensors that look into it."""

from __future__ import annotations

from math import prod
from mmap import mmap

import torch

from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import RecordLayout


class Slot:
    """Memory for one record.

    Attributes:
        offset: Byte offset of the slot in its mapping.
        nbytes: Size of the slot, a multiple of 4096.
        index: Number of the slot among those of its size.
        record: The memory, writable.
    """

    __slots__ = ("_memory", "_views", "index", "nbytes", "offset", "record")

    def __init__(self, memory: mmap, offset: int, nbytes: int, index: int) -> None:
        self._memory = memory
        self.offset = offset
        self._views: dict[RecordLayout, tuple[torch.Tensor, ...]] = {}
        self.nbytes = nbytes
        self.index = index
        self.record = memoryview(memory)[offset : offset + nbytes]

    def views(self, layout: RecordLayout) -> tuple[torch.Tensor, ...]:
        """The fields of ``layout`` as tensors that share this slot's memory, in the layout's order.

        They are made once and show whatever record the slot holds. They keep its memory mapped while they live.
        """
        views = self._views.get(layout)
        if views is None:
            # Made in inference mode they could not be used outside it, and slots outlive the caller's mode.
            with torch.inference_mode(False):
                views = tuple(
                    self._view(TORCH_DTYPES[field.dtype], field.shape, field.offset) for field in layout.fields
                )
            self._views[layout] = views
        return views

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        count = prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self.offset + offset)
        return flat.view(shape)
