"""A small decoder whose layers have no experts: a pass of one token or two through all of it in one call."""

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

MOST_TOKENS = 2
"""Tokens of one pass."""

_MOST_WIDTH = 8192

_long, _pointer, _double = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class DenseNorm(NamedTuple):
    """A root-mean-square normalisation in float32.

    Attributes:
        weight: Of any dtype, [D].
        epsilon: Added to the mean of the squares.
    """

    weight: torch.Tensor
    epsilon: float


class DenseLayer(NamedTuple):
    """A layer: attention with rotated and normalised heads, then a gated feed-forward block, each with its residual.

    Attributes:
        before: Over the hidden state, D.
        of_query: Over each head of the query.
        of_key: Over each head of the key.
        after: Over the hidden state with attention added.
        query: [heads · width, D].
        key: [kv_heads · width, D].
        value: [kv_heads · width, D].
        output: [D, heads · width].
        gate: [F, D].
        up: [F, D].
        down: [D, F].
        activation: One of ``ACTIVATIONS``.
    """

    before: DenseNorm
    of_query: DenseNorm
    of_key: DenseNorm
    after: DenseNorm
    query: PackedMatrix
    key: PackedMatrix
    value: PackedMatrix
    output: PackedMatrix
    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    activation: str

    @property
    def shape(self) -> tuple[int, int, int, int, int, str]:
        """D, heads, kv_heads, values of a head, F, and the activation."""
        head = self.of_query.weight.shape[0]
        return (
            self.query.shape[1],
            self.query.shape[0] // head,
            self.key.shape[0] // head,
            head,
            self.gate.shape[0],
            self.activation,
        )

    @property
    def served(self) -> bool:
        """Whether :class:`DenseDecoder` computes it."""
        width, heads, kv_heads, head, inner, activation = self.shape
        mixed, kept = heads * head, kv_heads * head
        shapes = (
            (self.query.shape, (mixed, width)),
            (self.key.shape, (kept, width)),
            (self.value.shape, (kept, width)),
            (self.output.shape, (width, mixed)),
            (self.gate.shape, (inner, width)),
            (self.up.shape, (inner, width)),
            (self.down.shape, (width, inner)),
            (self.before.weight.shape, (width,)),
            (self.after.weight.shape, (width,)),
            (self.of_key.weight.shape, (head,)),
        )
        return (
            activation in ACTIVATIONS
            and kept > 0
            and 0 < width <= _MOST_WIDTH
            and attention_served(heads, kv_heads, head)
            and all(tuple(got) == wanted for got, wanted in shapes)
        )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("epsilon", _double))


class _Layer(ctypes.Structure):
    """``decoder_layer`` of ``dense_decoder.h``."""

    _fields_ = (
        *((name, _Norm) for name in ("before", "of_query", "of_key", "after")),
        *((name, PlacedMatrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
    )


class _Decoder(ctypes.Structure):
    """``decoder`` of ``dense_decoder.h``."""

    _fields_ = (
        *((name, _long) for name in ("level", "activation", "width", "heads", "kv_heads", "head_width")),
        *((name, _long) for name in ("inner", "positions", "count")),
        ("scale", _double),
        ("layers", _pointer),
        ("last", _Norm),
        ("cosine", _pointer),
        ("sine", _pointer),
    )


class _Call(ctypes.Structure):
    """``decoder_call`` of ``dense_decoder.h``."""

    _fields_ = (
        *((name, _long) for name in ("threads", "tokens", "position")),
        *((name, _pointer) for name in ("embeddings", "head", "logits", "keys", "values")),
        *((name, _pointer) for name in ("residual", "projected", "query", "mixed", "hidden", "scores")),
    )


class DenseSequence:
    """The tokens of one sequence that a decoder has seen, and its working memory. Not for two threads at once.

    Attributes:
        length: Tokens that it has seen.
    """

    def __init__(self, call: _Call, memory: Sequence[torch.Tensor]) -> None:
        self.length = 0
        self._call = call
        self._memory = tuple(memory)  # held, because C is given addresses
        self._address = ctypes.addressof(call)


class DenseDecoder:
    """A decoder of dense layers, with several heads: the logits of a sequence's last token in one native call.

    Weights of products are in a scheme. What lies between products is float32; it is rounded to bfloat16 only where a
    product or attention reads it. The bits depend neither on the number of threads nor on how many tokens a pass has.
    Several threads may each have a sequence.

    Args:
        library: The library.
        layers: In order.
        last: Normalises what the heads get.
        heads: The heads, [V, D] each.
        cosine: Of the rotary embedding, float32 [positions, values of a head], as many as a sequence has tokens.
        sine: The same.
        scale: Times the products of query and keys.

    Raises:
        UsageError: If the parts do not fit together, or are not served (see :attr:`DenseLayer.served`).
    """

    def __init__(
        self,
        library: Library,
        layers: Sequence[DenseLayer],
        last: DenseNorm,
        heads: Sequence[PackedMatrix],
        *,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        scale: float,
    ) -> None:
        shapes = {layer.shape for layer in layers}
        if len(shapes) != 1 or not all(layer.served for layer in layers):
            raise UsageError(f"Layers of these shapes are not served: {sorted(shapes)}.", shapes=sorted(shapes))
        (self._shape,) = shapes
        width, query_heads, kv_heads, head, inner, activation = self._shape
        positions = cosine.shape[0]
        if any(one.dtype is not torch.float32 or tuple(one.shape) != (positions, head) for one in (cosine, sine)):
            raise UsageError(f"Cosine and sine must be float32 [positions, {head}].", got=list(cosine.shape))
        if last.weight.shape != (width,) or any(matrix.shape[1] != width for matrix in heads):
            raise UsageError(f"The last norm and the heads must take {width} values.", width=width)
        functions = library.functions
        for mirror, nbytes in (
            (_Decoder, functions.coterie_decoder_bytes()),
            (_Layer, functions.coterie_decoder_layer_bytes()),
            (_Call, functions.coterie_decoder_call_bytes()),
        ):
            if ctypes.sizeof(mirror) != nbytes:
                raise AssertionError(f"dense_decoder.h and its mirror {mirror.__name__} differ")
        self._library, self._count, self._positions = library, len(layers), positions
        self._compute = functions.coterie_dense_decoder
        # Held, because C is given addresses.
        self._held: list[object] = [*layers, *heads]
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))
        self._heads = (PlacedMatrix * len(heads))(*(PlacedMatrix(*matrix.place) for matrix in heads))
        self._outputs = [matrix.shape[0] for matrix in heads]
        self._decoder = _Decoder(
            level=library.level, activation=ACTIVATIONS.index(activation), width=width, heads=query_heads,
            kv_heads=kv_heads, head_width=head, inner=inner, positions=positions, count=len(layers), scale=scale,
            layers=ctypes.addressof(self._layers), last=self._norm(last), cosine=self._hold(cosine),
            sine=self._hold(sine),
        )  # fmt: skip
        self._address = ctypes.addressof(self._decoder)

    def begin(self) -> DenseSequence:
        """A sequence that has seen no token."""
        width, heads, kv_heads, head, inner, _ = self._shape
        threads, kept = self._library.threads, self._count * kv_heads * self._positions * head
        sizes = {
            "keys": kept, "values": kept, "query": MOST_TOKENS * heads * head, "mixed": MOST_TOKENS * heads * head,
            "hidden": MOST_TOKENS * inner,
        }  # fmt: skip
        floats = {
            "residual": MOST_TOKENS * width, "projected": MOST_TOKENS * (heads + 2 * kv_heads) * head,
            "scores": threads * (heads // kv_heads) * self._positions,
        }  # fmt: skip
        memory = {
            **{name: torch.empty(size, dtype=torch.bfloat16, device="cpu") for name, size in sizes.items()},
            **{name: torch.empty(size, dtype=torch.float32, device="cpu") for name, size in floats.items()},
        }
        call = _Call(threads=threads, **{name: tensor.data_ptr() for name, tensor in memory.items()})
        return DenseSequence(call, list(memory.values()))

    def __call__(self, sequence: DenseSequence, embeddings: torch.Tensor, head: int) -> torch.Tensor:
        """Passes the next tokens; returns the logits of the last of them, float32 [V].

        Args:
            sequence: From :meth:`begin`; has these tokens afterwards.
            embeddings: bfloat16 [T, D], contiguous; T is 1 or 2.
            head: Which of the heads.

        Raises:
            UsageError: If there are more tokens than it takes, or the embeddings are something else.
        """
        tokens, width = embeddings.shape
        if not 1 <= tokens <= MOST_TOKENS or sequence.length + tokens > self._positions:
            raise UsageError(
                f"A sequence takes {self._positions} tokens, 1 or {MOST_TOKENS} at a time; this one has "
                f"{sequence.length}, and {tokens} more are passed.",
                got=tokens,
            )
        if embeddings.dtype is not torch.bfloat16 or width != self._shape[0] or not embeddings.is_contiguous():
            got = f"{embeddings.dtype} {list(embeddings.shape)}"
            raise UsageError(f"Embeddings must be contiguous bfloat16 [T, {self._shape[0]}], not {got}.", got=got)
        logits = torch.empty(self._outputs[head], dtype=torch.float32, device="cpu")
        call = sequence._call
        call.tokens, call.position = tokens, sequence.length
        call.embeddings, call.logits = embeddings.data_ptr(), logits.data_ptr()
        call.head = ctypes.addressof(self._heads[head])
        self._compute(self._address, sequence._address)
        sequence.length += tokens
        return logits

    def _layer(self, layer: DenseLayer) -> _Layer:
        norms = [self._norm(norm) for norm in layer[:4]]
        return _Layer(*norms, *(PlacedMatrix(*matrix.place) for matrix in layer[4:-1]))

    def _norm(self, norm: DenseNorm) -> _Norm:
        return _Norm(self._hold(norm.weight.detach().float()), norm.epsilon)

    def _hold(self, tensor: torch.Tensor) -> int:
        contiguous = tensor.contiguous()
        self._held.append(contiguous)
        return contiguous.data_ptr()
