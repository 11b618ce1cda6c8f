"""A router's forward, run on zeros to see what it does: nothing of the model is read or changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coterie.routing.steps import Step, Steps

_ROUTING_CHILDREN = ("gate", "router")


class Rehearsal:
    """One way to route, on a copy whose parameters are zeros on the CPU.

    Args:
        owner: The module whose method it is; on the meta device too.
        method: Name of the method.
        width: Choices that logits have, for methods that are given logits; else None.

    Attributes:
        owner: The copy. It has no children but routers, so no experts either.
        function: The method as the class has it.
    """

    def __init__(self, owner: nn.Module, method: str, width: int | None = None) -> None:
        self.owner = _zeros_like(owner, only_routers=width is not None)
        self.function: Callable[..., Any] = getattr(type(owner), method)
        self._width = width
        self._ndim = 2

    def steps(self) -> list[Step]:
        """What the method does.

        Raises:
            Exception: Whatever the method raises where it does not run on its own.
        """
        try:
            return self._steps()
        except Exception:  # the class knows which shape it wants: [T, H] or [B, T, H]
            self._ndim = 3
            return self._steps()

    def _steps(self) -> list[Step]:
        recorded = Steps()
        self.run(recorded)
        return recorded.taken

    def steps_of(self, adapter: nn.Module) -> list[Step]:
        """What an adapter of the same class does with the same arguments."""
        recorded = Steps()
        self.run(recorded, lambda _, **arguments: adapter.forward(**arguments))
        return recorded.taken

    def run(self, mode: TorchFunctionMode | None = None, function: Callable[..., Any] | None = None) -> Any:
        """Runs the method, or another function of the same arguments, on one token."""
        with torch.no_grad(), torch.device("cpu"):
            arguments = self._arguments()
            with mode or nullcontext():
                return (function or self.function)(self.owner, **arguments)

    def _arguments(self) -> dict[str, Tensor]:
        dtype = next((p.dtype for p in self.owner.parameters() if p.is_floating_point()), torch.float32)
        # A method that takes hidden states and logits looks at the dtype of the former only.
        size = _hidden_size(self.owner) if self._width is None else self._width
        arguments = {}
        for parameter in list(inspect.signature(self.function).parameters.values())[1:]:
            name = parameter.name
            if name.endswith("bias"):
                arguments[name] = torch.zeros(int(getattr(self.owner, "num_experts", 0)) or _rows(self.owner))
            elif parameter.default is not parameter.empty or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                continue
            elif name == "input_ids":
                arguments[name] = torch.zeros(1, 1, dtype=torch.int64)
            else:
                arguments[name] = torch.zeros([1] * (self._ndim - 1) + [size], dtype=dtype)
        return arguments


def _zeros_like(module: nn.Module, *, only_routers: bool) -> nn.Module:
    """A copy with zeros on the CPU; ``only_routers`` leaves all children out but routers."""
    # Not copy.copy: blocks of a model that is open refuse to be copied.
    shell = type(module).__new__(type(module))
    shell.__dict__ = module.__dict__.copy()
    children = {n: c for n, c in module._modules.items() if not only_routers or n in _ROUTING_CHILDREN}
    shell._modules = {name: None if c is None else _zeros_like(c, only_routers=False) for name, c in children.items()}
    for registry in ("_parameters", "_buffers"):
        tensors = {
            name: None if t is None else torch.zeros(t.shape, dtype=t.dtype, device="cpu")
            for name, t in getattr(module, registry).items()
        }
        shell.__dict__[registry] = tensors
    for registry in ("_forward_hooks", "_forward_pre_hooks"):
        shell.__dict__[registry] = type(shell.__dict__[registry])()
    shell.__dict__["training"] = False
    return shell


def _hidden_size(router: nn.Module) -> int:
    for name in ("hidden_dim", "hidden_size"):
        size = getattr(router, name, None)
        if isinstance(size, int):
            return size
    sizes = {p.shape[1] for p in router.parameters() if p.ndim == 2}
    return max(sizes, default=1)


def _rows(router: nn.Module) -> int:
    return max((p.shape[0] for p in router.parameters() if p.ndim == 2), default=1)
