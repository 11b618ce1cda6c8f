"""Runs one layer of a model: those before it give back what they get, and the one after it ends the pass.

The model's own forward does the rest: it makes masks and positions, and whatever else layers are given, and does what
it does between two layers. So what a layer computes is what it computes in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.calibration.inputs import Inputs
from coterie.errors import UnsupportedError
from coterie.hf.banks import ExpertBank
from coterie.passes.current import Stopped
from coterie.passes.forwards import own, standing_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Returns = int | None
"""How many values a layer returns as a tuple; None for a single tensor."""

_HIDDEN = "hidden_states"
"""What every layer of transformers calls them, where they are not its first argument."""


class Layers:
    """The layers of a model that have its experts.

    Args:
        model: The model.
        banks: Its banks.

    Raises:
        UnsupportedError: If they are in several stacks of layers, or in none.
    """

    def __init__(self, model: PreTrainedModel, banks: list[ExpertBank]) -> None:
        self._model: Any = model
        stacks = {_stack(model, bank.path) for bank in banks}
        stack = stacks.pop() if len(stacks) == 1 else None
        if stack is None or getattr(model.config, "is_encoder_decoder", False):
            raise UnsupportedError(
                f"{type(model).__name__} cannot be calibrated: its experts are not all in one stack of layers.",
                advice="Quantise it without calibration.",
            )
        self._modules = list(model.get_submodule(stack).children())
        self._number = {bank.key: int(bank.path.removeprefix(f"{stack}.").partition(".")[0]) for bank in banks}

    @property
    def numbers(self) -> Mapping[Any, int]:
        """Bank → the number of its layer in the stack."""
        return self._number

    @torch.inference_mode()
    def run(
        self,
        number: int,
        inputs: Inputs,
        options: Mapping[str, Any],
        hidden: torch.Tensor | None,
        returns: list[Returns],
    ) -> tuple[torch.Tensor | None, Returns]:
        """Runs a layer.

        Args:
            number: Which.
            inputs: What the model is given.
            options: What its forward is given besides.
            hidden: What the layer is given; None for what the model gives it, which is right for the first.
            returns: Those of the layers before it.

        Returns:
            What the layer after it is given, None for the last; and what this layer returns.
        """
        one = _OneLayer(number, hidden)
        forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        for at, module in enumerate(self._modules[: number + 2]):
            if at < number:
                forwards.append((module, one.skipping(returns[at])))
            elif at == number:
                forward = own(module) or MethodType(type(module).forward, module)
                forwards.append((module, one.running(forward, last=number == len(self._modules) - 1)))
            else:
                forwards.append((module, one.ending()))
        with standing_in(forwards):
            try:
                self._model(**inputs, **options)
            except Stopped:
                return one.after, one.returns
        raise UnsupportedError(
            f"{type(self._model).__name__} cannot be calibrated: layer {number} was not called on the way.",
            advice="Quantise it without calibration.",
        )


class _OneLayer:
    """The forwards that stand in for those of the layers in one pass."""

    def __init__(self, number: int, hidden: torch.Tensor | None) -> None:
        self._number = number
        self._hidden = hidden
        self._ran = False
        self.after: torch.Tensor | None = None
        self.returns: Returns = None

    def skipping(self, returns: Returns) -> Callable[..., Any]:
        """Gives back what it gets."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = _given(args, kwargs)
            return hidden if returns is None else (hidden, *([None] * (returns - 1)))

        return forward

    def running(self, beneath: Callable[..., Any], *, last: bool) -> Callable[..., Any]:
        """Computes, with the hidden states that were kept."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._hidden is not None:
                args, kwargs = ((self._hidden, *args[1:]), kwargs) if args else (args, kwargs | {_HIDDEN: self._hidden})
            result = beneath(*args, **kwargs)
            self.returns = len(result) if isinstance(result, tuple) else None
            self._ran = True
            if last:
                raise Stopped
            return result

        return forward

    def ending(self) -> Callable[..., Any]:
        """Takes what it is given, and ends the pass."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._ran:
                self.after = _given(args, kwargs)
            raise Stopped

        return forward


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states among a layer's arguments."""
    hidden: torch.Tensor = args[0] if args else kwargs[_HIDDEN]
    return hidden


def _stack(model: nn.Module, path: str) -> str | None:
    """The path of the list of layers that a module is in; of several, the outermost."""
    segments = path.split(".")
    for count in range(1, len(segments)):
        above = ".".join(segments[:count])
        if isinstance(model.get_submodule(above), nn.ModuleList) and segments[count].isdigit():
            return above
    return None
