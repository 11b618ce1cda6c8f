"""Root-mean-square normalisation in one call instead of six: the same bits, where that can be shown.

Which order torch adds in, and what a class does with its weight, is not for us to assume: :func:`exact_rms_norm` tries
on data of the very width what reproduces the module's own forward bit for bit, and has nothing to offer otherwise.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coterie.native import Library

Forward = Callable[[torch.Tensor], torch.Tensor]

_MOST_VALUES = 32768
"""From so many on torch may share a sum among threads."""

_LANES = (8, 16, 4)
_FORMS = (0, 1, 2)
_TRIED_ROWS = (1, 2, 5, 16)
_TRIED_VALUES = 1 << 16


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
