"""One token's way through a decoder layer: what is passed to C, what comes back, and the working memory between."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

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
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    top_k: int


class Results(NamedTuple):
    """What a layer gives to the cache and to its experts.

    Attributes:
        key: bfloat16 [1, kv_heads, 1, width of a head].
        value: The same.
        residual: bfloat16 [1, 1, D]: the hidden state with attention added.
        normed: bfloat16 [1, D]: the same, normalised.
        ids: int64 [1, K], highest share first; [1, 0] without a router.
        weights: bfloat16 [1, K].
        out: bfloat16 [1, 1, D]: the residual with what experts add, where :class:`TokenExperts` computed them.
        norms: float32 [1, K]: of what each chosen expert adds, where that was asked for.
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
        ("threads", _long),
        *((name, _pointer) for name in ("hidden", "cosine", "sine", "results", "query", "keys", "values")),
        *((name, _long) for name in ("length", "key_stride", "value_stride", "append")),
        *((name, _pointer) for name in ("scores", "mixed", "logits", "rows", "times")),
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


class Passage:
    """One token's way through a layer, and the working memory that it takes; from :meth:`NativeLayer.take`.

    Args:
        shape: The layer's.

    Attributes:
        call: What is passed to C.
        address: Where that lies.
        results: What the layer gives.
        cosine: Of the rotary embedding, that C has the address of.
        sine: The same.
    """

    results: Results
    cosine: torch.Tensor | None = None
    sine: torch.Tensor | None = None

    def __init__(self, shape: LayerShape) -> None:
        mixed = shape.heads * shape.head_width
        self._shape = shape
        self._work = torch.empty(2 * mixed + shape.experts, dtype=torch.bfloat16, device="cpu")
        self._scores = torch.empty(0, dtype=torch.float32, device="cpu")
        self._rows = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._room = 0
        self._places = (LayerResults * _BATCH)()
        self._ready: list[Results] = []
        query = self._work.data_ptr()
        self.call = LayerCall(query=query, mixed=query + 2 * mixed, logits=query + 4 * mixed)
        self.address = ctypes.addressof(self.call)

    def make_results(self) -> None:
        """Takes tensors that nobody has: whoever got the last ones may keep them."""
        if not self._ready:
            self._ready = self._fresh()
        self.results = self._ready.pop()
        self.call.results = self.results.address

    def make_room(self, length: int) -> None:
        """For the scores of a cache of so many tokens."""
        if length > self._room:
            self._room = length + length // 4 + 64
            self._scores = torch.empty(self._shape.heads * self._room, dtype=torch.float32, device="cpu")
            self.call.scores = self._scores.data_ptr()

    def make_rows(self, nbytes: int) -> None:
        """For what is between the matrices of experts."""
        if nbytes > self._rows.numel():
            self._rows = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
            self.call.rows = self._rows.data_ptr()

    def _fresh(self) -> list[Results]:
        """Results for some layers at once: after a layer's weights have gone through the caches, each call is slow."""
        width, _, kv_heads, head_width, _, top_k = self._shape
        kept, hidden, few = (1, kv_heads, 1, head_width), (1, width), (1, top_k)
        whole = [
            torch.empty(_BATCH, *size, dtype=dtype, device="cpu")
            for size, dtype in (
                (kept, torch.bfloat16), (kept, torch.bfloat16), ((1, *hidden), torch.bfloat16),
                (hidden, torch.bfloat16), (few, torch.int64), (few, torch.bfloat16), ((1, *hidden), torch.bfloat16),
                (few, torch.float32),
            )
        ]  # fmt: skip
        for name, tensor in zip(_RESULTS, whole, strict=True):
            start, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
            for i, place in enumerate(self._places):
                setattr(place, name, start + i * step)
        addresses = [ctypes.addressof(place) for place in self._places]
        return [Results(*row) for row in zip(*(tensor.unbind(0) for tensor in whole), addresses, strict=True)]


class Passages:
    """Working memory that layers share: taken out while in use, so that no two threads have the same one."""

    def __init__(self) -> None:
        self._idle: dict[LayerShape, list[Passage]] = {}

    def take(self, shape: LayerShape) -> Passage:
        """For a layer of a shape."""
        try:
            return self._idle[shape].pop()
        except (KeyError, IndexError):
            return Passage(shape)

    def give(self, shape: LayerShape, passage: Passage) -> None:
        """Takes one back."""
        self._idle.setdefault(shape, []).append(passage)
