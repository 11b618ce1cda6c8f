"""What a layer works with while some rows go through it: what is passed to C, what comes back, the memory between."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch

from coterie.errors import UsageError

MOST_ROWS = 16
"""Tokens of so many sequences go through a layer at once; each has the bits that it has alone."""

STAGES = ("norms", "linear", "attention", "router", "experts")
"""What a layer's time is told apart by; their order is that of the C code."""

_BATCH = 16
"""Results that are made at once."""

_RESULTS = ("key", "value", "residual", "normed", "ids", "weights", "out", "norms")

_long, _pointer, _double = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class LayerShape(NamedTuple):
    """Sizes of a layer.

    Attributes:
        width: D.
        heads: Heads of the query.
        kv_heads: Heads of key and value.
        head_width: Values of a head.
        experts: E; 0 without a router.
        top_k: K; 0 without a router.
        inner: F of the block that every token goes through; 0 without one.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    top_k: int
    inner: int = 0


class KeyValueRoom(NamedTuple):
    """Where a row's keys and values lie in memory: bfloat16 [kv_heads, length, width], a head's tokens side by side.

    The fields are those of ``layer_room`` of ``layer.h``.

    Attributes:
        keys: Address of the keys.
        values: Address of the values.
        key_stride: Elements from one head's keys to the next one's.
        value_stride: Elements from one head's values to the next one's.
        length: Tokens.
    """

    keys: int
    values: int
    key_stride: int
    value_stride: int
    length: int

    def after(self, tokens: int, width: int) -> KeyValueRoom:
        """Without the first tokens.

        Args:
            tokens: How many are left out.
            width: Values of a head.
        """
        skipped = tokens * width * torch.bfloat16.itemsize
        return self._replace(keys=self.keys + skipped, values=self.values + skipped, length=self.length - tokens)

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> list[KeyValueRoom]:
        """One for each row.

        Args:
            keys: bfloat16 [T, kv_heads, length, width], tokens side by side.
            values: The same.
        """
        return [
            cls(key.data_ptr(), value.data_ptr(), key.stride(0), value.stride(0), key.shape[1])
            for key, value in zip(keys, values, strict=True)
        ]


class Results(NamedTuple):
    """What a layer gives to the caches and to its experts, for each of T rows.

    Attributes:
        key: bfloat16 [T, kv_heads, 1, width of a head].
        value: The same.
        residual: bfloat16 [T, 1, D]: the hidden state with attention added, and what a block that every token goes
            through adds.
        normed: bfloat16 [T, D]: the hidden state with attention added, normalised.
        ids: int64 [T, K], highest share first; [T, 0] without a router.
        weights: bfloat16 [T, K].
        out: bfloat16 [T, 1, D]: the residual with what experts add, where :class:`TokenExperts` computed them.
        norms: float32 [T, K]: of what each chosen expert adds, where that was asked for.
        address: Where C finds where they are.
    """

    key: torch.Tensor
    value: torch.Tensor
    residual: torch.Tensor
    normed: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    out: torch.Tensor
    norms: torch.Tensor
    address: int


class LayerResults(ctypes.Structure):
    """``layer_results`` of ``layer.h``."""

    _fields_ = tuple((name, _pointer) for name in _RESULTS)


class LayerCall(ctypes.Structure):
    """``layer_call`` of ``layer.h``."""

    _fields_ = (
        *((name, _long) for name in ("threads", "rows")),
        *((name, _pointer) for name in ("hidden", "cosine", "sine")),
        ("position_stride", _long),
        *((name, _pointer) for name in ("results", "rooms")),
        ("append", _long),
        *((name, _pointer) for name in ("query", "mixed", "logits", "between", "scores")),
        ("longest", _long),
        *((name, _pointer) for name in ("contributions", "times")),
    )


class StageTimes(ctypes.Structure):
    """``layer_times`` of ``layer.h``: what the stages of a layer took, added up.

    Attributes:
        passes: Passes that were timed.
        with_experts: Of these, through experts, too.
    """

    _fields_ = (("_seconds", _double * len(STAGES)), ("passes", _long), ("with_experts", _long))
    passes: int
    with_experts: int

    @property
    def seconds(self) -> tuple[float, ...]:
        """By stage, in the order of ``STAGES``."""
        return tuple(self._seconds)

    def reset(self) -> None:
        """Forgets everything."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))


class TokenState:
    """Some rows on their way through a layer, and the working memory of that; from :meth:`NativeLayer.take`.

    Args:
        shape: The layer's.
        rows: T, tokens of different sequences, up to ``MOST_ROWS``.

    Attributes:
        rows: That given.
        call: What is passed to C.
        address: Where that lies.
        results: What the layer gives.
        cosine: Of the rotary embedding, that C has the address of.
        sine: The same.
    """

    results: Results
    cosine: torch.Tensor | None = None
    sine: torch.Tensor | None = None

    def __init__(self, shape: LayerShape, rows: int = 1) -> None:
        if not 1 <= rows <= MOST_ROWS:
            raise UsageError(f"A layer takes 1 to {MOST_ROWS} rows at once, not {rows}.", got=rows)
        mixed = rows * shape.heads * shape.head_width
        self.rows = rows
        self._shape = shape
        self._sharing = shape.heads // shape.kv_heads
        self._work = torch.empty(2 * mixed + rows * (shape.experts + shape.inner), dtype=torch.bfloat16, device="cpu")
        self._scores = torch.empty(0, dtype=torch.float32, device="cpu")
        self._scores_count = 0
        self._contributions = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._rooms = (_long * (len(KeyValueRoom._fields) * rows))()
        self._places = (LayerResults * _BATCH)()
        self._ready: list[Results] = []
        query = self._work.data_ptr()
        self.call = LayerCall(
            rows=rows, rooms=ctypes.addressof(self._rooms),
            query=query, mixed=query + 2 * mixed, logits=query + 4 * mixed,
            between=query + 4 * mixed + 2 * rows * shape.experts,
        )  # fmt: skip
        self.address = ctypes.addressof(self.call)

    def make_results(self) -> None:
        """Takes tensors that nobody has: whoever got the last ones may keep them."""
        if not self._ready:
            self._ready = self._fresh()
        self.results = self._ready.pop()
        self.call.results = self.results.address

    def attend_to(self, rooms: Sequence[KeyValueRoom], *, append: bool) -> None:
        """Says where the rows' keys and values are, and makes room for their scores.

        Args:
            rooms: One for each row, with a place for its token at the end.
            append: Whether the tokens are still to be written there.
        """
        self._rooms[:] = list(chain.from_iterable(rooms))
        call = self.call
        call.append = append
        call.longest = longest = max(room.length for room in rooms)
        at_once = call.threads * self._sharing
        if at_once * longest > self._scores_count:
            self._scores_count = at_once * (longest + longest // 4 + 64)
            self._scores = torch.empty(self._scores_count, dtype=torch.float32, device="cpu")
            call.scores = self._scores.data_ptr()

    def make_contributions(self, nbytes: int) -> None:
        """Makes room for what is between the matrices of experts, and what each adds."""
        if nbytes > self._contributions.numel():
            self._contributions = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
            self.call.contributions = self._contributions.data_ptr()

    def _fresh(self) -> list[Results]:
        """Results for some layers at once: after a layer's weights have gone through the caches, each call is slow."""
        width, _, kv_heads, head_width, _, top_k, _ = self._shape
        rows = self.rows
        kept, whole_states, states, few = (
            (rows, kv_heads, 1, head_width),
            (rows, 1, width),
            (rows, width),
            (rows, top_k),
        )
        whole = [
            torch.empty(_BATCH, *size, dtype=dtype, device="cpu")
            for size, dtype in (
                (kept, torch.bfloat16), (kept, torch.bfloat16), (whole_states, torch.bfloat16),
                (states, torch.bfloat16), (few, torch.int64), (few, torch.bfloat16), (whole_states, torch.bfloat16),
                (few, torch.float32),
            )
        ]  # fmt: skip
        for name, tensor in zip(_RESULTS, whole, strict=True):
            start, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
            for i, place in enumerate(self._places):
                setattr(place, name, start + i * step)
        addresses = [ctypes.addressof(place) for place in self._places]
        return [Results(*row) for row in zip(*(tensor.unbind(0) for tensor in whole), addresses, strict=True)]


class TokenStates:
    """Working memory that layers share: taken out while in use, so that no two threads have the same one."""

    def __init__(self) -> None:
        self._idle: dict[tuple[LayerShape, int], list[TokenState]] = {}

    def take(self, shape: LayerShape, rows: int) -> TokenState:
        """For so many rows through a layer of a shape."""
        try:
            return self._idle[shape, rows].pop()
        except (KeyError, IndexError):
            return TokenState(shape, rows)

    def give(self, shape: LayerShape, state: TokenState) -> None:
        """Takes one back."""
        self._idle.setdefault((shape, state.rows), []).append(state)
