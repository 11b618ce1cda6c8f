"""Memory that a pass through the experts of a layer needs, kept for the next one."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain

import torch

from coterie.native.library import Library

Located = tuple[int, int, int, int, int, int, int]
"""An expert's id, and for gate_up and for down the scheme's number in ``SCHEME_CODES``, and the addresses of codes
and scales."""

KEPT_BYTES = 4 << 20
"""Up to this many bytes of intermediate results are kept from one forward pass to the next: enough for decoding."""

_NUMBERS = 7
"""Of an expert that is located."""

_long, _pointer = ctypes.c_int64, ctypes.c_void_p


class PassMemory:
    """Memory for intermediate results that the layers of one forward pass use one after the other.

    New memory is dear: the kernel finds and clears each page when a thread first touches it, and threads that do so at
    the same time wait for each other. With many of them that takes longer than the arithmetic. Not for several threads
    at once; let go of it when the forward pass is over.
    """

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None

    def take(self, nbytes: int) -> torch.Tensor:
        """At least so many bytes; who took some before has no more use for them."""
        if self._kept is None or self._kept.numel() < nbytes:
            self._kept = None  # freed before more is asked for
            self._kept = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        return self._kept


class ExpertsCall(ctypes.Structure):
    """``experts_call`` of ``experts.h``."""

    _fields_ = (
        *((name, _long) for name in ("level", "threads", "activation")),
        *((name, _long) for name in ("width", "inner", "used", "choices")),
        *((name, _pointer) for name in ("experts", "offsets", "row_token", "row_weight", "token_rows", "done")),
        ("computed", _long),
        ("count", _long),
        ("table", _pointer),
        ("tokens", _long),
        *((name, _pointer) for name in ("x", "hidden", "rows", "out", "scratch")),
        ("many", _long),
        *((name, _pointer) for name in ("ids", "norms")),
    )


class Workspace:
    """Arrays for up to so many tokens with so many choices each.

    Args:
        library: The library.
        tokens: T.
        choices: K.
        num_experts: E.

    Attributes:
        call: What is passed to C.
        address: Where that lies.
    """

    def __init__(self, library: Library, tokens: int, choices: int, num_experts: int) -> None:
        pairs, experts = tokens * choices, min(num_experts, tokens * choices)
        self._library = library
        self._tokens, self._choices = tokens, choices
        self._num_experts = num_experts
        self._experts = (_long * experts)()
        self._table = (_long * (_NUMBERS * experts))()
        sizes = (experts + 1, pairs, pairs, pairs, num_experts, tokens)
        self._arrays = [(ctypes.c_int32 * size)() for size in sizes]
        self._done = (ctypes.c_uint8 * num_experts)()
        offsets, row_token, row_weight, token_rows, counts, filled = map(ctypes.addressof, self._arrays)
        self._scratch = (counts, filled)
        self.call = ExpertsCall(
            experts=ctypes.addressof(self._experts),
            offsets=offsets,
            row_token=row_token,
            row_weight=row_weight,
            token_rows=token_rows,
            done=ctypes.addressof(self._done),
            table=ctypes.addressof(self._table),
        )
        self.address = ctypes.addressof(self.call)
        self._written = (
            self.call.experts, offsets, row_token, row_weight, token_rows, counts, filled, self.call.done,
        )  # fmt: skip
        self._own = PassMemory()
        self._scratch_of_products: torch.Tensor | None = None

    def serves(self, tokens: int, choices: int) -> bool:
        """Whether there is room for a pass."""
        return tokens <= self._tokens and choices == self._choices

    def route(self, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> list[int] | None:
        """Groups the tokens by expert; returns the experts' ids in ascending order, None if an id is negative."""
        tokens, choices = index_TK.shape
        used = self._library.functions.coterie_route(
            index_TK.data_ptr(),
            weights_TK.data_ptr(),
            int(weights_TK.dtype == torch.bfloat16),
            tokens,
            choices,
            self._num_experts,
            *self._written,
        )
        call = self.call
        call.used, call.choices, call.tokens, call.computed = max(0, used), choices, tokens, 0
        return self._experts[:used] if used >= 0 else None

    def fill(self, located: Sequence[Located]) -> None:
        """Writes the table of experts; ValueError if there are more than were chosen at the most."""
        count = len(located)
        self._table[: _NUMBERS * count] = list(chain.from_iterable(located))
        self.call.count = count

    def intermediate(self, nbytes: int, memory: PassMemory | None) -> torch.Tensor:
        """At least so many bytes for intermediate results, aligned; much is taken from ``memory`` if that is given."""
        if nbytes <= KEPT_BYTES:
            return self._own.take(nbytes)
        return (memory or PassMemory()).take(nbytes)

    def make_scratch(self) -> None:
        """Gives C what it needs for the experts with many rows, for the threads of the call; kept for the next pass."""
        nbytes = self._library.functions.coterie_experts_scratch(self.address)
        kept = self._scratch_of_products
        if nbytes and (kept is None or kept.numel() < nbytes):
            kept = self._scratch_of_products = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        self.call.scratch = kept.data_ptr() if nbytes and kept is not None else None
