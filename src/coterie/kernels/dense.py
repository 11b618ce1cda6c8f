"""Linear layers, normalisations and attention, all beside experts: the bits of stock transformers, by the fastest way.

Linear layers have the arithmetic of stock transformers, or weights that are stored in a scheme. For an input whose rows
do not lie one after the other, torch chooses between one product over all rows and a batched product by whether the
*weight* wants gradients, even where none are computed; the two round differently in float32. Stock parameters want
gradients, those of a streamed model must not. ``generate`` meets this with every batch: the head is given the last
position of each row.

A root-mean-square normalisation is one native call instead of six, where that can be shown to give the same bits. Which
order torch adds in, and what a class does with its weight, is not for us to assume: :func:`exact_rms_norm` tries on
data of the very width what reproduces the module's own forward bit for bit, and has nothing to offer otherwise.

With grouped-query attention several heads of the query read the same keys and values. If there is a mask, transformers
repeats them for every head before it calls torch's kernel: on some devices the kernel would have no mask otherwise. On
the CPU it has, and computes the same products, so the bits are the same (:class:`GroupedAttention`). How much that
saves, ``benchmarks/bench_attention.py`` measures.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from coterie.native import MOST_ROWS, Library, PackedMatrix, library
from coterie.quant import Scheme, StoredMatrix

Forward = Callable[[torch.Tensor], torch.Tensor]

_VALUES_AT_ONCE = 2**22
"""Weights that are dequantised at once: enough rows for an efficient product, few enough to stay out of the budget."""

_MOST_VALUES = 32768
"""From so many on torch may share a sum among threads."""

_LANES = (8, 16, 4)
_FORMS = (0, 1, 2)
_TRIED_ROWS = (1, 2, 5, 16)
_TRIED_VALUES = 1 << 16


def stock_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``input @ weight.T + bias``, rounded as with a weight that wants gradients.

    Args:
        input: […, K].
        weight: [N, K].
        bias: [N], or None.

    Returns:
        […, N].
    """
    # Without a bias torch looks at strides that is_contiguous() passes over, those of dimensions with one entry.
    if _is_folded(input) if bias is None else input.dim() < 3 or input.is_contiguous():
        return linear(input, weight, bias)
    output: torch.Tensor = torch.mm(input.reshape(-1, input.shape[-1]), weight.t()).view(*input.shape[:-1], len(weight))
    return output if bias is None else output + bias


def _is_folded(input: torch.Tensor) -> bool:
    """Whether torch takes all rows as one matrix in any case; by strides, also those of dimensions with one entry."""
    strides, shape = input.stride(), input.shape
    if len(strides) == 3:
        return strides[0] == strides[1] * shape[1]
    return all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(len(strides) - 2))


def quantised_linear(
    input: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    scheme: Scheme,
    bias: torch.Tensor | None = None,
    *,
    values_at_once: int = _VALUES_AT_ONCE,
) -> torch.Tensor:
    """``input @ weight.T + bias`` with a weight that is stored in a scheme.

    The weight is dequantised to the input's dtype a few million values at a time. What fits into one such block gives
    the bits that :func:`stock_linear` gives with the rounded weight; of larger weights, sums may be rounded in another
    order.

    Args:
        input: […, K].
        codes: The first tensor that the scheme stores of a weight [N, K].
        scales: The second one.
        scheme: The scheme.
        bias: [N], or None.
        values_at_once: Weights to dequantise at once; at least one row is.

    Returns:
        […, N], in the input's dtype.
    """
    rows, columns = len(codes), input.shape[-1]
    step = max(1, values_at_once // columns)
    if rows <= step:
        return stock_linear(input, scheme.dequantise((codes, scales), columns, input.dtype), bias)
    output = torch.empty(*input.shape[:-1], rows, dtype=input.dtype)
    for first in range(0, rows, step):
        block = slice(first, min(first + step, rows))
        weight = scheme.dequantise((codes[block], scales[block]), columns, input.dtype)
        output[..., block] = stock_linear(input, weight, None if bias is None else bias[block])
    return output


class StockLinear(nn.Linear):
    """``nn.Linear`` with a weight that wants no gradients and the arithmetic of one that does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        # Every linear layer of every step comes here. Module.__getattr__, by which self.weight is found, costs more
        # than the check below does.
        parameters: dict[str, Any] = self._parameters
        try:
            return stock_linear(input, parameters["weight"], parameters["bias"])
        except KeyError:  # parametrised
            return stock_linear(input, self.weight, self.bias)


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is kept in a scheme.

    In bfloat16 the native library multiplies by the codes, where it was built and serves the shape; else the weight is
    dequantised a part at a time when it is computed with.

    Args:
        linear: The layer whose place it takes; its bias is taken over.
        matrix: How the weight is stored.

    Attributes:
        in_features: Inputs.
        out_features: Outputs.
        scheme: Scheme of the weight.
        dtype: Dtype that the weight stands for.
        codes: The weight's codes, once :meth:`fill` has been called.
        scales: Their scales.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    # transformers initialises what lacks this mark.
    _is_hf_initialized = True

    def __init__(self, linear: nn.Linear, matrix: StoredMatrix) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows_and_columns
        self.scheme: Scheme = matrix.scheme
        self.dtype = linear.weight.dtype
        self._packed: PackedMatrix | None = None
        self.register_parameter("bias", linear.bias)
        self.training = linear.training

    def fill(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Takes the weight; after loading, because transformers empties every buffer that is there before."""
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        native = library()
        if native is not None and PackedMatrix.served(native, self.scheme.name, self.in_features):
            self._packed = PackedMatrix(native, self.scheme.name, codes, scales)

    @property
    def packed(self) -> PackedMatrix | None:
        """The weight as the native library multiplies by it, where it does."""
        return self._packed

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight, dequantised anew each time: for the few classes that use it beside the layer's forward.

        Before :meth:`fill`, a tensor without content that transformers' initialisation passes over.
        """
        if "codes" not in self._buffers:
            empty = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")
            empty.__dict__["_is_hf_initialized"] = True
            return empty
        return self.scheme.dequantise((self.codes, self.scales), self.in_features, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        packed, bias = self._packed, self._parameters["bias"]
        if packed is not None and input.dtype is torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            # One token of each of a few sequences: none may see what the others are.
            rows = input.dim() == 3 and input.shape[1] == 1 and input.shape[0] <= MOST_ROWS
            output = packed(input.reshape(-1, self.in_features), rows=rows).view(*input.shape[:-1], self.out_features)
            return output if bias is None else output + bias
        buffers: dict[str, Any] = self._buffers
        return quantised_linear(input, buffers["codes"], buffers["scales"], self.scheme, bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        bias = self._parameters["bias"] is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, scheme={self.scheme.name}"


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """How a module's normalisation is computed natively.

    Attributes:
        library: The native library.
        lanes: Floats that torch adds side by side.
        form: What is done with the weight; see ``native/rms_norm.c``.
        epsilon: Added to the mean of the squares.
    """

    library: Library
    lanes: int
    form: int
    epsilon: float

    def __call__(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension, D.

        Args:
            values: Contiguous, […, D] of at most 32,768 values, bfloat16 or float32.
            weight: [D] of the same dtype.
        """
        out = torch.empty_like(values)
        columns = weight.shape[0]
        self.library.functions.coterie_rms_norm(
            self.library.level,
            self.lanes,
            self.form,
            values.dtype is torch.bfloat16,
            values.data_ptr(),
            weight.data_ptr(),
            values.numel() // columns,
            columns,
            self.epsilon,
            out.data_ptr(),
        )
        return out


def serves(values: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether :class:`RmsNorm` computes this as it was tried: few values, side by side, no gradients, no autocast."""
    return (
        values.dtype is weight.dtype
        and values.numel() <= _MOST_VALUES
        and values.shape[-1] == weight.shape[0]
        and values.is_contiguous()
        and not values.requires_grad
    )


class NormForward:
    """A normalisation's forward: native for what was tried, the class's own for everything else.

    Attributes:
        norm: How it is computed natively.
    """

    __slots__ = ("_class_forward", "_module", "_parameters", "norm")

    def __init__(self, module: nn.Module, norm: RmsNorm) -> None:
        self._module = module
        self.norm = norm
        self._class_forward = type(module).forward
        # Module.__getattr__, by which module.weight is found, costs more than the check.
        self._parameters: dict[str, Any] = module._parameters

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the class computes."""
        weight = self._parameters.get("weight")
        if weight is None or not serves(hidden_states, weight) or torch.is_autocast_enabled("cpu"):
            result: torch.Tensor = self._class_forward(self._module, hidden_states)
            return result
        return self.norm(hidden_states, weight)


def exact_rms_norm(
    library: Library, module: nn.Module, forward: Callable[[Any, torch.Tensor], torch.Tensor]
) -> RmsNorm | None:
    """The way that gives the bits of a module's forward on data of its width; None if none does.

    Args:
        library: The native library.
        module: A normalisation with a ``weight`` [D] in bfloat16 or float32 and nothing else to compute with.
        forward: Its class's forward, called with the module.
    """
    weight, epsilon = getattr(module, "weight", None), epsilon_of(module)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or epsilon is None:
        return None
    if (
        weight.dtype not in (torch.bfloat16, torch.float32)
        or weight.device.type != "cpu"
        or len(list(module.parameters())) > 1
    ):
        return None
    if len(inspect.signature(forward).parameters) != 2:
        return None  # gated, or conditioned on something
    columns = weight.shape[0]
    if not 8 <= columns <= _MOST_VALUES // 2:
        return None
    with torch.no_grad():
        rounds = [(rows, forward(module, rows)) for rows in _telling_rows(columns, weight.dtype)]
        for lanes, form in itertools.product(_LANES, _FORMS):
            norm = RmsNorm(library, lanes, form, epsilon)
            if all(serves(rows, weight) and torch.equal(norm(rows, weight.detach()), want) for rows, want in rounds):
                return norm
    return None


def epsilon_of(module: nn.Module) -> float | None:
    """What a normalisation adds to the mean of the squares; None if it does not say."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _telling_rows(columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Rows of many magnitudes.

    A sum that is added in another order differs in about half of all rows, but in its last bit; that shows in one of a
    few hundred results in bfloat16, and in every other one in float32. So there are many values in all. Some rows are
    so small that epsilon counts. Narrow rows are tried many at a time: each trial costs some calls, whatever is in it.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    many = max(16, _TRIED_VALUES // 4 // columns)
    for count in (*_TRIED_ROWS, *[many] * -(-_TRIED_VALUES // (many * columns))):
        count = max(1, min(count, _MOST_VALUES // columns))
        scale = 10.0 ** torch.randint(-4, 3, (count, 1), generator=generator)
        spread = 2.0 ** torch.randint(-6, 7, (columns,), generator=generator)
        found.append((torch.randn(count, columns, generator=generator) * scale * spread).to(dtype)[None])
    return found


class GroupedAttention:
    """What transformers calls as ``sdpa``: for the attention of our models without copies, for others as before.

    Args:
        stock: What transformers had under that name.
    """

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._ours: WeakSet[nn.Module] = WeakSet()
        code = stock.__code__
        # What it makes nothing of, it may be given: its keywords, and names that it looks for among further ones.
        self._read = {*code.co_varnames[: code.co_argcount], *(one for one in code.co_consts if isinstance(one, str))}

    def serve(self, model: nn.Module) -> None:
        """From now on the attention of a model is computed here."""
        self._ours.update(module for module in model.modules() if _groups(module) > 1)

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention as torch's kernel computes it.

        Args:
            module: The attention layer.
            query: [B, H, Q, D].
            key: [B, G, T, D]; H is a multiple of G.
            value: [B, G, T, D].
            attention_mask: Which tokens are looked at, or what is added to their scores: [B, 1 or H, Q, T].
            dropout: Share of the weights that are left out.
            scaling: Factor of the scores.
            is_causal: Whether later tokens are hidden, where there is no mask.
            **kwargs: What classes have for other implementations.

        Returns:
            [B, Q, H, D], and no weights.
        """
        if (
            torch.compiler.is_compiling()
            or not isinstance(attention_mask, torch.Tensor)
            or query.shape[2] == 1
            or dropout
            or module not in self._ours
            or query.device.type != "cpu"
            or (query.requires_grad and torch.is_grad_enabled())
            or attention_mask.shape[-1] != key.shape[2]
            or key.shape[1] * _groups(module) != query.shape[1]
            or any(value is not None and value is not False and name in self._read for name, value in kwargs.items())
        ):
            return self._stock(  # type: ignore[no-any-return]
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=is_causal,
                **kwargs,
            )
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None


def _groups(module: nn.Module) -> int:
    """Heads of the query for each of the keys."""
    groups = getattr(module, "num_key_value_groups", 1)
    return groups if isinstance(groups, int) else 1
