"""The forwards that instances of a model's modules have instead of their class's: the one place that writes them.

A module can have several, one over the other, in a stated order whatever the order in which they came. Others may give
a module a forward, too (``module.forward = …``): what was there lies beneath it, and what comes later lies over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal, NamedTuple, get_args

from torch import nn
from torch.nn.modules import module as torch_module

from coterie.hf.recorders import only_idle_recorders

Forward = Callable[..., Any]

Place = Literal["experts", "native", "prediction", "logits", "part", "encoding", "pass", "timing"]
"""Who has a forward, from the inside out: the ``experts`` of a bank, a ``native`` way to compute what the class does,
who sees what a router is given (``prediction``), who computes only the logits that were asked for (``logits``), who
has a part in memory while it computes (``part``), who ends a pass with an encoder (``encoding``), who sees a
component's forward passes (``pass``), who times modules (``timing``)."""

_RANK = {place: rank for rank, place in enumerate(get_args(Place))}

_STACK = "_coterie_forwards"


class Covering:
    """A forward that calls what lies beneath it; any other calls its class's own where it does not compute itself.

    Attributes:
        beneath: What that is: another forward, or the class's own. :func:`install` keeps it right.
    """

    beneath: Forward


class _Layer(NamedTuple):
    place: Place | None
    """None for somebody else's."""
    forward: Forward


def install(module: nn.Module, place: Place, forward: Forward) -> None:
    """Gives a module a forward: over those of the same place and of places before it, beneath those after it.

    Args:
        module: The module.
        place: Who has it.
        forward: Called instead of the class's own.
    """
    layers = _layers(module)
    at = len(layers)
    while at and (over := layers[at - 1].place) is not None and _RANK[over] > _RANK[place]:
        at -= 1
    _put(module, [*layers[:at], _Layer(place, forward), *layers[at:]])


def remove(module: nn.Module, place: Place) -> None:
    """Takes the outermost forward of a place off; those of others that were put over it since go with it."""
    layers = _layers(module)
    at = max((number for number, layer in enumerate(layers) if layer.place == place), default=None)
    if at is not None:
        _put(module, [*layers[:at], *(layer for layer in layers[at + 1 :] if layer.place is not None)])


@contextmanager
def standing_in(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Inside, modules have other forwards than they have, whoever gave them these.

    Args:
        forwards: Modules, each once, and what is called instead.
    """
    stood = [(module.__dict__, own(module), forward) for module, forward in forwards]
    for space, _, forward in stood:
        space["forward"] = forward
    try:
        yield
    finally:
        for space, before, _ in stood:
            if before is None:
                del space["forward"]
            else:
                space["forward"] = before


def own(module: nn.Module) -> Forward | None:
    """The forward that a module has of its own, whoever gave it; None if its class's is called."""
    return module.__dict__.get("forward")


def at(module: nn.Module, place: Place) -> Forward | None:
    """The outermost forward of a place; None if there is none, or somebody else's lies over it."""
    for layer in reversed(_layers(module)):
        if layer.place is None:
            return None
        if layer.place == place:
            return layer.forward
    return None


def covers_class(module: nn.Module, place: Place) -> bool:
    """Whether nothing but the class's own forward would lie beneath one that was installed at a place."""
    return all(layer.place is not None and _RANK[layer.place] > _RANK[place] for layer in _layers(module))


def change_class(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Makes a module one of another class, whose forward then lies beneath all that it has.

    Returns:
        Whether it was: a forward of somebody else's stands for what the class computed, so nothing is changed then.
    """
    layers = _layers(module)
    if any(layer.place is None for layer in layers):
        return False
    module.__class__ = cls
    _put(module, layers)
    return True


class Seen:
    """The forwards that some modules have now, to compare what they have later with.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._seen = [(module.__dict__, own(module)) for module in modules]

    @property
    def unchanged(self) -> bool:
        """Whether all have these still."""
        for space, forward in self._seen:  # noqa: SIM110 - all() is slower, in every decode step
            if space.get("forward") is not forward:
                return False
        return True


class Examined:
    """Submodules that are not called while a native forward computes what they would.

    Where one of them has another forward since, or a hook, is another module or has another weight, the class's own
    forward is to run, which calls them.

    Args:
        stands_for: The submodules that are not called.
        parents: Modules whose children these are.
        weighed: Those of them whose ``weight`` is read where it lies.
    """

    def __init__(
        self, stands_for: Sequence[nn.Module], parents: Iterable[nn.Module], weighed: Iterable[nn.Module]
    ) -> None:
        self.stands_for = tuple(stands_for)
        self._children = [(one._modules, name, child) for one in parents for name, child in one._modules.items()]
        held = ((one._parameters, one._parameters["weight"]) for one in weighed)
        self._weights = [(parameters, weight.data_ptr()) for parameters, weight in held if weight is not None]
        self._global_hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
        self._hooks = (
            *self._global_hooks,
            *(hooks for one in self.stands_for for hooks in (one._forward_hooks, one._forward_pre_hooks)),
        )
        self.examine()

    def examine(self) -> None:
        """Takes the forwards that the submodules have now for those that it stands for."""
        self._forwards = Seen(self.stands_for)

    @property
    def unchanged(self) -> bool:
        """Whether the submodules are what they were, and nobody has hooks on them."""
        if not self._forwards.unchanged:
            return False
        for modules, name, module in self._children:
            if modules.get(name) is not module:
                return False
        for parameters, address in self._weights:
            weight = parameters.get("weight")  # none, once it is parametrised
            if weight is None or weight.data_ptr() != address:
                return False
        return not any(self._hooks) or self._only_idle_recorders()

    def _only_idle_recorders(self) -> bool:
        """Whether nobody but transformers, which records nothing in this pass, has hooks on the submodules."""
        others = any(self._global_hooks) or any(one._forward_pre_hooks for one in self.stands_for)
        return not others and all(only_idle_recorders(one._forward_hooks) for one in self.stands_for)


def _layers(module: nn.Module) -> list[_Layer]:
    """What a module has, from the inside out. What others put over it, or took off, is seen by what it has now."""
    now = own(module)
    if now is None:
        return []
    stack: list[_Layer] = module.__dict__.get(_STACK, [])
    for number, layer in enumerate(stack):
        if layer.forward is now:
            return stack[: number + 1]
    return [*stack, _Layer(None, now)]


def _put(module: nn.Module, layers: list[_Layer]) -> None:
    if not layers:
        module.__dict__.pop("forward", None)
        module.__dict__.pop(_STACK, None)
        return
    beneath: Forward = MethodType(type(module).forward, module)
    for layer in layers:
        if isinstance(layer.forward, Covering):
            layer.forward.beneath = beneath
        beneath = layer.forward
    module.__dict__[_STACK] = layers
    module.__dict__["forward"] = layers[-1].forward
