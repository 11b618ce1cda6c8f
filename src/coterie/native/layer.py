"""A decoder layer of a few rows but for its experts: in one call, or before the cache takes keys and after."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from coterie.errors import UsageError
from coterie.native.attention import attention_served
from coterie.native.experts import ACTIVATIONS
from coterie.native.library import Library
from coterie.native.matmul import PackedMatrix, PlacedMatrix
from coterie.native.router import MOST_CHOICES, MOST_EXPERTS
from coterie.native.token_state import (
    KeyValueRoom,
    LayerCall,
    LayerResults,
    LayerShape,
    Results,
    StageTimes,
    TokenState,
    TokenStates,
)

_MOST_WIDTH = 16384

_long, _pointer, _double = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class LayerNorm(NamedTuple):
    """A root-mean-square normalisation, as :class:`coterie.kernels.dense.RmsNorm` describes it.

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


class LayerBlock(NamedTuple):
    """A gated feed-forward block that every token goes through, ``down(act(gate x) * up x)``.

    Attributes:
        gate: [F, D].
        up: [F, D].
        down: [D, F].
        activation: One of ``ACTIVATIONS``.
        share: bfloat16 [1, D], contiguous: a token takes the sigmoid of its product with it of the block; None for all.
    """

    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    activation: str
    share: torch.Tensor | None


class LayerParts(NamedTuple):
    """What a layer consists of, but for the experts that a router chooses.

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
        block: What is beside the experts, or in their place; None for nothing.
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
    block: LayerBlock | None = None

    @property
    def shape(self) -> LayerShape:
        """Sizes, by the query's and key's matrices."""
        head, router = self.of_query.weight.shape[0], self.router
        experts, top_k = (0, 0) if router is None else (router.weight.shape[0], router.top_k)
        heads, kv_heads = self.query.shape[0] // head, self.key.shape[0] // head
        inner = 0 if self.block is None else self.block.gate.shape[0]
        return LayerShape(self.query.shape[1], heads, kv_heads, head, experts, top_k, inner)

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """The weights that are not matrices in a scheme."""
        norms = (self.before.weight, self.of_query.weight, self.of_key.weight, self.after.weight)
        share = None if self.block is None else self.block.share
        others = (None if self.router is None else self.router.weight, share)
        return (*norms, *(weight for weight in others if weight is not None))

    @property
    def served(self) -> bool:
        """Whether :class:`NativeLayer` computes it."""
        width, heads, kv_heads, head, _, _, inner = self.shape
        router, mixed, kept = self.router, heads * head, kv_heads * head
        shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
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
        if (block := self.block) is not None:
            ends = (width, inner)
            shapes += ((block.gate.shape, ends[::-1]), (block.up.shape, ends[::-1]), (block.down.shape, ends))
            if block.activation not in ACTIVATIONS or inner == 0:
                return False
            if block.share is not None:
                shapes += ((block.share.shape, (1, width)),)
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


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("lanes", _long), ("form", _long), ("epsilon", _double))


class _Layer(ctypes.Structure):
    """``layer`` of ``layer.h``."""

    _fields_ = (
        *((name, _long) for name in ("level", "width", "heads", "kv_heads", "head_width")),
        ("scale", _double),
        *((name, _Norm) for name in ("before", "of_query", "of_key", "after")),
        *((name, PlacedMatrix) for name in ("query", "key", "value", "output")),
        ("router", _pointer),
        *((name, _long) for name in ("experts", "top_k", "normalise")),
        *((name, PlacedMatrix) for name in ("gate", "up", "down")),
        ("share", _pointer),
        *((name, _long) for name in ("inner", "activation")),
    )


class NativeLayer:
    """A decoder layer but for the experts that its router chooses.

    So it is attention with its residual, the norms, the router, and the block that every token goes through.

    It takes rows: the next token of each of up to ``MOST_ROWS`` sequences. Every product, norm, rotation and choice has
    the bits of those that the library computes one by one, whatever the number of threads and of rows. Can be used by
    several threads at once.

    Args:
        library: The library.
        parts: What the layer consists of.
        states: Working memory.

    Raises:
        UsageError: If the library does not serve such a layer (see :attr:`LayerParts.served`).
    """

    def __init__(self, library: Library, parts: LayerParts, states: TokenStates) -> None:
        if not parts.served:
            raise UsageError(f"A layer of this shape is not served: {parts.shape}.", shape=parts.shape)
        functions = library.functions
        for mirror, nbytes in (
            (_Layer, functions.coterie_layer_bytes()),
            (LayerCall, functions.coterie_layer_call_bytes()),
            (LayerResults, functions.coterie_layer_results_bytes()),
            (StageTimes, functions.coterie_layer_times_bytes()),
        ):
            if ctypes.sizeof(mirror) != nbytes:
                raise AssertionError(f"layer.h and its mirror {mirror.__name__} differ")
        # Held, because C is given addresses.
        self._parts = tuple(weight.detach() for weight in parts.weights), parts
        self._library, self._states = library, states
        self._shape, router = parts.shape, parts.router
        self._layer = _Layer(
            level=library.level, width=self._shape.width, heads=self._shape.heads, kv_heads=self._shape.kv_heads,
            head_width=self._shape.head_width, scale=parts.scale,
            before=_norm(parts.before), of_query=_norm(parts.of_query), of_key=_norm(parts.of_key),
            after=_norm(parts.after), query=PlacedMatrix(*parts.query.place), key=PlacedMatrix(*parts.key.place),
            value=PlacedMatrix(*parts.value.place), output=PlacedMatrix(*parts.output.place),
            router=None if router is None else router.weight.data_ptr(), experts=self._shape.experts,
            top_k=self._shape.top_k, normalise=router is not None and router.normalise, inner=self._shape.inner,
        )  # fmt: skip
        if (block := parts.block) is not None:
            self._layer.gate, self._layer.up, self._layer.down = (
                PlacedMatrix(*one.place) for one in (block.gate, block.up, block.down)
            )
            self._layer.share = None if block.share is None else block.share.data_ptr()
            self._layer.activation = ACTIVATIONS.index(block.activation)
        self._address = ctypes.addressof(self._layer)
        self._begin, self._finish = functions.coterie_layer_begin, functions.coterie_layer_finish
        self._both = functions.coterie_layer

    def take(
        self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, times: StageTimes | None = None
    ) -> TokenState:
        """Working memory for some rows, to be given back by :meth:`release`.

        Args:
            hidden: bfloat16, contiguous, [T, 1, D]; stays until the layer is over.
            cosine: bfloat16, contiguous, [T, 1, values of a head], or [1, 1, …] for rows that are all at one position.
            sine: The same.
            times: What stages take is added to these; they stay until the layer is over.

        Raises:
            UsageError: If there are more rows than ``MOST_ROWS``.
        """
        state = self._states.take(self._shape, hidden.shape[0])
        call = state.call
        call.times = None if times is None else ctypes.addressof(times)
        state.make_results()
        call.hidden = hidden.data_ptr()
        if state.cosine is not cosine or state.sine is not sine:
            # The same for all layers of a forward pass.
            state.cosine, state.sine = cosine, sine
            call.cosine, call.sine = cosine.data_ptr(), sine.data_ptr()
            call.position_stride = self._shape.head_width if cosine.shape[0] > 1 else 0
            call.threads = self._library.threads
        return state

    def compute(self, state: TokenState, rooms: Sequence[KeyValueRoom]) -> Results:
        """Both halves at once; keys and values are written to the caches, too.

        Args:
            state: From :meth:`take`.
            rooms: Each row's, with a place for its token at the end.
        """
        state.attend_to(rooms, append=True)
        self._both(self._address, state.address)
        return state.results

    def begin(self, state: TokenState) -> Results:
        """The first half: results have keys and values, for a cache that takes them itself.

        Args:
            state: From :meth:`take`.
        """
        self._begin(self._address, state.address)
        return state.results

    def finish(self, state: TokenState, rooms: Sequence[KeyValueRoom]) -> Results:
        """The second half: attention over the caches, the residual, and what the experts get.

        Args:
            state: From :meth:`take`, after :meth:`begin`.
            rooms: Each row's, with its token at the end.
        """
        state.attend_to(rooms, append=False)
        self._finish(self._address, state.address)
        return state.results

    def release(self, state: TokenState) -> None:
        """Takes back a state that is no longer used."""
        self._states.give(self._shape, state)


def _norm(norm: LayerNorm) -> _Norm:
    return _Norm(norm.weight.data_ptr(), norm.lanes, norm.form, norm.epsilon)
