"""Weights that are not in memory now: what stands in for them, and how their modules bring them back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from coterie.errors import UnsupportedError
from coterie.kernels import QuantisedLinear
from coterie.passes.forwards import Covering, install

_TELLING = frozenset(
    {
        "__get__", "__hash__", "__len__", "__repr__", "dim", "element_size", "is_complex", "is_contiguous",
        "is_floating_point", "nelement", "numel", "requires_grad_", "size", "stride", "storage_offset",
    }
)  # fmt: skip
"""What may be asked of weights that are away: what they are, and not what their values are."""


class AwayWeight(nn.Parameter):
    """Stands in for a weight: it has its shape and dtype, and computing with it is an error, not a wrong number.

    Args:
        weight: Whose place it takes.
        path: Whose weight that is, for the message.
        advice: What to do about it.
    """

    def __new__(cls, weight: torch.Tensor, path: str, advice: str) -> AwayWeight:
        """Takes no memory."""
        empty = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        made: AwayWeight = torch.Tensor._make_subclass(cls, empty, False)
        made.__dict__["away"] = (path, advice)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answers what it is; anything else needs the values.

        Raises:
            UnsupportedError: For anything else.
        """
        if getattr(func, "__name__", "") in _TELLING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        path, advice = next(
            (one.__dict__["away"] for one in _tensors((args, kwargs or {})) if isinstance(one, AwayWeight)), ("", "")
        )
        raise UnsupportedError(f"The weights of {path or 'a part'} are not in memory now.", advice=advice)


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


class AwayModules:
    """The modules of a part whose weights come and go. Their memory stays where it is, whether there is any or not.

    Args:
        path: The part's place in the model.
        root: Its module.
        addresses: Where the weights lie that come and go.
        touched: Brings the weights back; called before a module computes without them.
    """

    def __init__(self, path: str, root: nn.Module, addresses: frozenset[int], touched: Callable[[], object]) -> None:
        self._path = path
        self._touched = touched
        self._places: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._packed: list[tuple[QuantisedLinear, Any]] = []
        self._owners: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        for module in root.modules():
            spaces: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            found = [
                (space, name, weight)
                for space in spaces
                for name, weight in space.items()
                if weight is not None and weight.data_ptr() in addresses
            ]
            if found:
                self._places += found
                self._owners.append(module)

    @property
    def addresses(self) -> set[int]:
        """Those of the weights that were found."""
        return {weight.data_ptr() for _, _, weight in self._places}

    def leave(self) -> None:
        """The weights are about to go: nothing computes with them from now on."""
        advice = "Call the module, which brings them back; or open the model with a larger memory budget."
        stand_ins: dict[int, AwayWeight] = {}
        for space, name, weight in self._places:
            if id(weight) not in stand_ins:
                stand_ins[id(weight)] = AwayWeight(weight, self._path, advice)
            space[name] = stand_ins[id(weight)]
        for module in self._owners:
            if isinstance(module, QuantisedLinear):
                self._packed.append((module, module._packed))
                module._packed = None
            self._hooks.append(module.register_forward_pre_hook(self._touch))

    def come_back(self) -> None:
        """The weights are there again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for module, packed in self._packed:
            module._packed = packed
        self._packed.clear()
        for space, name, weight in self._places:
            space[name] = weight

    def _touch(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._touched()


class Using(Covering):
    """The forward of a module of a part, which has the part in memory for as long as it lasts.

    Args:
        module: The module.
        using: Has the part in memory; given what the forward is called with.
    """

    def __init__(
        self, module: nn.Module, using: Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[object]]
    ) -> None:
        self._using = using
        functools.update_wrapper(self, module.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What lies beneath it computes."""
        with self._using(args, kwargs):
            return self.beneath(*args, **kwargs)


def cover(
    root: nn.Module,
    using: Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[object]],
    *,
    deep: bool,
) -> None:
    """Has a part in memory while one of its modules computes that others may call.

    Args:
        root: The part's module.
        using: As :class:`Using` takes it.
        deep: Whether others call modules within it as well.
    """
    for module in {id(one): one for one in (root, *(_entries(root) if deep else ()))}.values():
        install(module, "part", Using(module, using))


def _entries(root: nn.Module) -> Iterator[nn.Module]:
    """Modules within a part that are called from outside: its children, and embeddings of models in it."""
    for child in root.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _entries(child)
        else:
            yield child
    for module in root.modules():
        find = getattr(module, "get_input_embeddings", None)
        try:
            found = None if find is None else find()
        except NotImplementedError:  # a model without any
            continue
        if isinstance(found, nn.ModuleList):
            yield from found
        elif isinstance(found, nn.Module):
            yield found
