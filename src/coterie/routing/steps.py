"""What a function does to tensors, written down while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

_SILENT = frozenset(
    {"__get__", "__set__", "size", "dim", "numel", "is_floating_point", "is_autocast_enabled", "__bool__"}
)
_SAME = {"true_divide": "div", "__truediv__": "div", "__rtruediv__": "div", "__add__": "add", "__mul__": "mul"}
_POSITIONAL = {"topk": ("k", "dim"), "softmax": ("dim",), "sum": ("dim",), "gather": ("dim",), "max": ("dim",)}


class Step(NamedTuple):
    """One call of torch.

    Attributes:
        name: The function; in-place variants and spellings of one operation share a name.
        arguments: Its arguments that are no tensors, as text in a fixed order.
        shape: Shape of the first tensor that it was given, or None.
        k: The ``k`` of a top-k, else None.
    """

    name: str
    arguments: str
    shape: tuple[int, ...] | None
    k: int | None = None


class Steps(TorchFunctionMode):
    """Records the calls of torch that are made while it is entered, in order.

    Attributes:
        taken: The steps so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Step] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Records the call and makes it."""
        kwargs = kwargs or {}
        name = step_name(func)
        if name not in _SILENT:
            self.taken.append(_step(name, args, kwargs))
        return func(*args, **kwargs)


@functools.cache
def step_name(func: Callable[..., Any]) -> str:
    """The name of a function of torch, the same for all spellings of an operation."""
    name = getattr(func, "__name__", type(func).__name__)
    if not name.startswith("__"):
        name = name.rstrip("_")
    if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"):
        name = "__" + name[3:]
    return _SAME.get(name, name)


def _step(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
    constants = [a for a in args if not isinstance(a, torch.Tensor)]
    named = {key: value for key, value in kwargs.items() if not isinstance(value, torch.Tensor)}
    named |= dict(zip(_POSITIONAL.get(name, ()), constants, strict=False))
    constants = constants[len(_POSITIONAL.get(name, ())) :]
    text = ", ".join([*map(repr, constants), *(f"{key}={named[key]!r}" for key in sorted(named))])
    return Step(name, text, tuple(first.shape) if first is not None else None, named.get("k"))
