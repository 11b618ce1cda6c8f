"""Modules that a native forward stands for: whether they still are what they were when it was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules import module as torch_module

from coterie.hf.recorders import only_idle_recorders
from coterie.passes.forwards import own


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
