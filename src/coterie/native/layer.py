"""A decoder layer of one token but for its experts, in two calls: before the cache takes key and value, and after."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from coterie.errors import UsageError
from coterie.native.attention import attention_served
from coterie.native.library import Library
from coterie.native.matmul import PackedMatrix
from coterie.native.router import MOST_CHOICES, MOST_EXPERTS

STAGES = ("norms", "linear", "attention", "router")
"""What a layer's time is told apart by; their order is that of the C code."""

_MOST_WIDTH = 16384

_BATCH = 16
"""Results that are made at once."""

_RESULTS = ("key", "value", "residual", "normed", "ids", "weights")

_long, _pointer, _double = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class LayerNorm(NamedTuple):
    """A root-mean-square normalisation, as :class:`coterie.kernels.norms.RmsNorm` describes it.

    Attributes:
        weight: bfloat16 [D], contiguous.
        lanes: Floats that are added side by side.
        form: What is done with the weight.
        epsilon: Added to the mean of the squares.
    """

    weight: torch.Tensor
    lanes: int
    form: int
    epsilon: float


class LayerRouter(NamedTuple):
    """A softmax router.

    Attributes:
        weight: bfloat16 [E, D], contiguous.
        top_k: K.
        normalise: Whether a token's weights are divided by their sum.
    """

    weight: torch.Tensor
    top_k: int
    normalise: bool


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


class LayerParts(NamedTuple):
    """What a layer consists of, but for its experts.

    Attributes:
        before: Over the hidden state, D.
        of_query: Over each head of the query.
        of_key: Over each head of the key.
        after: Over the hidden state with attention added.
        query: [heads · width, D].
        key: [kv_heads · width, D].
        value: [kv_heads · width, D].
        output: [D, heads · width].
        scale: Times the products of query and keys.
        router: The router, or None for a layer whose experts are somebody else's.
    """

    before: LayerNorm
    of_query: LayerNorm
    of_key: LayerNorm
    after: LayerNorm
    query: PackedMatrix
    key: PackedMatrix
    value: PackedMatrix
    output: PackedMatrix
    scale: float
    router: LayerRouter | None

    @property
    def shape(self) -> LayerShape:
        """Sizes, by the query's and key's matrices."""
        head, router = self.of_query.weight.shape[0], self.router
        experts, top_k = (0, 0) if router is None else (router.weight.shape[0], router.top_k)
        heads, kv_heads = self.query.shape[0] // head, self.key.shape[0] // head
        return LayerShape(self.query.shape[1], heads, kv_heads, head, experts, top_k)

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """The weights that are not matrices in a scheme."""
        norms = (self.before.weight, self.of_query.weight, self.of_key.weight, self.after.weight)
        return norms if self.router is None else (*norms, self.router.weight)

    @property
    def served(self) -> bool:
        """Whether :class:`NativeLayer` computes it."""
        width, heads, kv_heads, head, _, _ = self.shape
        router, mixed, kept = self.router, heads * head, kv_heads * head
        shapes = (
            (self.query.shape, (mixed, width)),
            (self.key.shape, (kept, width)),
            (self.value.shape, (kept, width)),
            (self.output.shape, (width, mixed)),
            (self.before.weight.shape, (width,)),
            (self.after.weight.shape, (width,)),
            (self.of_key.weight.shape, (head,)),
        )
        if kept == 0 or width > _MOST_WIDTH or not attention_served(heads, kv_heads, head):
            return False
        if any(tuple(got) != expected for got, expected in shapes):
            return False
        if router is not None and (
            router.weight.dim() != 2
            or router.weight.shape[1] != width
            or router.weight.shape[0] > MOST_EXPERTS
            or not 1 <= router.top_k <= min(MOST_CHOICES, router.weight.shape[0])
        ):
            return False
        return all(
            weight.dtype is torch.bfloat16 and weight.is_contiguous() and weight.is_cpu for weight in self.weights
        )


class Results(NamedTuple):
    """What a layer gives to the cache and to its experts.

    Attributes:
        key: bfloat16 [1, kv_heads, 1, width of a head].
        value: The same.
        residual: bfloat16 [1, 1, D]: the hidden state with attention added.
        normed: bfloat16 [1, D]: the same, normalised.
        ids: int64 [1, K], highest share first; [1, 0] without a router.
        weights: bfloat16 [1, K].
        address: Where C finds where they are.
    """

    key: torch.Tensor
    value: torch.Tensor
    residual: torch.Tensor
    normed: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    address: int


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("lanes", _long), ("form", _long), ("epsilon", _double))


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _long) for name in ("scheme", "rows", "columns", "group")),
        ("codes", _pointer),
        ("scales", _pointer),
    )


class _Layer(ctypes.Structure):
    """``layer`` of ``layer.h``."""

    _fields_ = (
        *((name, _long) for name in ("level", "width", "heads", "kv_heads", "head_width")),
        ("scale", _double),
        *((name, _Norm) for name in ("before", "of_query", "of_key", "after")),
        *((name, _Matrix) for name in ("query", "key", "value", "output")),
        ("router", _pointer),
        *((name, _long) for name in ("experts", "top_k", "normalise")),
    )


class _Results(ctypes.Structure):
    """``layer_results`` of ``layer.h``."""

    _fields_ = tuple((name, _pointer) for name in _RESULTS)


class _Call(ctypes.Structure):
    """``layer_call`` of ``layer.h``."""

    _fields_ = (
        ("threads", _long),
        *((name, _pointer) for name in ("hidden", "cosine", "sine", "results", "query", "keys", "values")),
        *((name, _long) for name in ("length", "key_stride", "value_stride", "append")),
        *((name, _pointer) for name in ("scores", "mixed", "logits", "times")),
    )


class Passage:
    """One token's way through a layer, and the working memory that it takes; from :meth:`NativeLayer.begin`.

    Args:
        shape: The layer's.

    Attributes:
        call: What is passed to C.
        address: Where that lies.
        results: What the layer gives.
    """

    results: Results

    def __init__(self, shape: LayerShape) -> None:
        mixed = shape.heads * shape.head_width
        self._shape = shape
        self._work = torch.empty(2 * mixed + shape.experts, dtype=torch.bfloat16, device="cpu")
        self._scores = torch.empty(0, dtype=torch.float32, device="cpu")
        self._room = 0
        self._times = (_double * len(STAGES))()
        self._places = (_Results * _BATCH)()
        self._ready: list[Results] = []
        query = self._work.data_ptr()
        self.call = _Call(query=query, mixed=query + 2 * mixed, logits=query + 4 * mixed)
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

    def time(self, wanted: bool) -> None:
        """Starts adding up what stages take, from nothing, or stops it."""
        ctypes.memset(self._times, 0, ctypes.sizeof(self._times))
        self.call.times = ctypes.addressof(self._times) if wanted else None

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds by stage, in the order of ``STAGES``."""
        return tuple(self._times)

    def _fresh(self) -> list[Results]:
        """Results for some layers at once: after a layer's weights have gone through the caches, each call is slow."""
        width, _, kv_heads, head_width, _, top_k = self._shape
        kept, hidden, few = (1, kv_heads, 1, head_width), (1, width), (1, top_k)
        whole = [
            torch.empty(_BATCH, *size, dtype=dtype, device="cpu")
            for size, dtype in (
                (kept, torch.bfloat16), (kept, torch.bfloat16), ((1, *hidden), torch.bfloat16),
                (hidden, torch.bfloat16), (few, torch.int64), (few, torch.bfloat16),
            )
        ]  # fmt: skip
        for name, tensor in zip(_RESULTS, whole, strict=True):
            start, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
            for i, place in enumerate(self._places):
                setattr(place, name, start + i * step)
        keys, values, residuals, normed, ids, weights = (tensor.unbind(0) for tensor in whole)
        addresses = [ctypes.addressof(place) for place in self._places]
        rows = zip(keys, values, residuals, normed, ids, weights, addresses, strict=True)
        return [Results(*row) for row in rows]


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


class NativeLayer:
    """A decoder layer of one token but for its experts: attention with its residual, the norms, and the router.

    Every product, norm, rotation and choice has the bits of those that the library computes one by one, whatever the
    number of threads. Can be used by several threads at once.

    Args:
        library: The library.
        parts: What the layer consists of.
        passages: Working memory.

    Raises:
        UsageError: If the library does not serve such a layer (see :attr:`LayerParts.served`).
    """

    def __init__(self, library: Library, parts: LayerParts, passages: Passages) -> None:
        if not parts.served:
            raise UsageError(f"A layer of this shape is not served: {parts.shape}.", shape=parts.shape)
        functions = library.functions
        sizes = (functions.coterie_layer_bytes(), functions.coterie_layer_call_bytes())
        if sizes != (ctypes.sizeof(_Layer), ctypes.sizeof(_Call) + ctypes.sizeof(_Results)):
            raise AssertionError("layer.h and its mirror differ")
        # Held, because C is given addresses.
        self._parts = tuple(weight.detach() for weight in parts.weights), parts
        self._library, self._passages = library, passages
        self._shape, router = parts.shape, parts.router
        self._layer = _Layer(
            level=library.level, width=self._shape.width, heads=self._shape.heads, kv_heads=self._shape.kv_heads,
            head_width=self._shape.head_width, scale=parts.scale,
            before=_norm(parts.before), of_query=_norm(parts.of_query), of_key=_norm(parts.of_key),
            after=_norm(parts.after), query=_Matrix(*parts.query.place), key=_Matrix(*parts.key.place),
            value=_Matrix(*parts.value.place), output=_Matrix(*parts.output.place),
            router=None if router is None else router.weight.data_ptr(), experts=self._shape.experts,
            top_k=self._shape.top_k, normalise=router is not None and router.normalise,
        )  # fmt: skip
        self._address = ctypes.addressof(self._layer)
        self._begin, self._finish = functions.coterie_layer_begin, functions.coterie_layer_finish

    def begin(self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, timed: bool = False) -> Passage:
        """The first half, up to key and value for the cache.

        Args:
            hidden: bfloat16, contiguous, of D values; stays until :meth:`finish`.
            cosine: bfloat16, contiguous, as many values as a head has.
            sine: The same.
            timed: Whether stages are timed (:attr:`Passage.times`).

        Returns:
            What :meth:`finish` goes on with; its results have key and value.
        """
        passage = self._passages.take(self._shape)
        call = passage.call
        if timed or call.times:
            passage.time(timed)
        passage.make_results()
        call.threads = self._library.threads
        call.hidden, call.cosine, call.sine = hidden.data_ptr(), cosine.data_ptr(), sine.data_ptr()
        self._begin(self._address, passage.address)
        return passage

    def finish(self, passage: Passage, keys: torch.Tensor, values: torch.Tensor, *, append: bool = False) -> Results:
        """The second half: attention over the cache, the residual, and what the experts get.

        Args:
            passage: From :meth:`begin`; to be given back by :meth:`release`.
            keys: bfloat16 [1, kv_heads, length, width] with this token's, tokens side by side.
            values: The same.
            append: Whether this token's are still to be written there, at the end.
        """
        call, length = passage.call, keys.shape[2]
        passage.make_room(length)
        call.keys, call.values, call.length = keys.data_ptr(), values.data_ptr(), length
        call.key_stride, call.value_stride, call.append = keys.stride(1), values.stride(1), append
        self._finish(self._address, passage.address)
        return passage.results

    def release(self, passage: Passage) -> None:
        """Takes a passage back that is over."""
        self._passages.give(self._shape, passage)


def _norm(norm: LayerNorm) -> _Norm:
    return _Norm(norm.weight.data_ptr(), norm.lanes, norm.form, norm.epsilon)
