"""Rows of a table of embeddings, read when a token needs them: the table itself is not in memory.

A pass needs a row for each of its tokens. A few thousand rows are kept, those that were used last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from coterie.errors import UsageError
from coterie.integration.away import AwayWeight
from coterie.passes.forwards import covers_class, install

ReadRows = Callable[[Sequence[int], memoryview], None]
"""Reads rows by number, one after the other, into memory that is as large as all of them."""


class EmbeddingRows:
    """The forward of an embedding whose table is not in memory. Safe to use from several threads.

    Args:
        module: The embedding.
        read: Reads rows of its table.
        nbytes: Bytes of the rows that are kept.
    """

    def __init__(self, module: nn.Embedding, read: ReadRows, nbytes: int) -> None:
        self._count, self._width = module.num_embeddings, module.embedding_dim
        self._dtype = module.weight.dtype
        self._read = read
        self._most = max(1, nbytes // (self._width * self._dtype.itemsize))
        self._kept: torch.Tensor | None = None
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether a module does nothing but look rows up."""
        return type(module) is nn.Embedding and module.max_norm is None and covers_class(module, "native")

    def install(self, module: nn.Embedding, path: str) -> None:
        """Takes the place of the module's forward, and of its table."""
        advice = "Call the embedding, which reads the rows; or open the model with a larger memory budget."
        module._parameters["weight"] = AwayWeight(module.weight, path, advice)
        install(module, "native", self)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Int […] → […, D].

        Raises:
            CoterieError: If rows cannot be read; then nothing has changed.
            UsageError: If there is no such row.
        """
        ids, places = torch.unique(input.reshape(-1), return_inverse=True)
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < self._count:
            raise UsageError(f"There is no token {int(ids[0] if ids[0] < 0 else ids[-1])}; there are {self._count}.")
        rows_UD = self._rows(ids.tolist())
        return rows_UD[places].view(*input.shape, self._width)

    def _rows(self, ids: list[int]) -> torch.Tensor:
        """Rows by number, [U, D]."""
        with self._lock:
            known = [number for number, id in enumerate(ids) if id in self._slots]
            new = [number for number, id in enumerate(ids) if id not in self._slots]
            rows_UD = torch.empty(len(ids), self._width, dtype=self._dtype)
            if new:
                fresh = torch.empty(len(new), self._width, dtype=self._dtype)
                self._read([ids[number] for number in new], fresh.view(torch.uint8).numpy().data.cast("B"))
                rows_UD[new] = fresh
            if known:
                kept = self._memory()
                rows_UD[known] = kept[[self._slots[ids[number]] for number in known]]
            for number in known:
                self._slots.move_to_end(ids[number])
            if new:
                self._keep([ids[number] for number in new[-self._most :]], fresh[-self._most :])
            return rows_UD

    def _keep(self, ids: list[int], rows: torch.Tensor) -> None:
        kept, slots = self._memory(), []
        for id in ids:
            slot = len(self._slots) if len(self._slots) < self._most else self._slots.popitem(last=False)[1]
            self._slots[id] = slot
            slots.append(slot)
        kept[slots] = rows

    def _memory(self) -> torch.Tensor:
        if self._kept is None:
            # Made in inference mode it could not be written to outside it.
            with torch.inference_mode(False):
                self._kept = torch.empty(self._most, self._width, dtype=self._dtype)
        return self._kept
