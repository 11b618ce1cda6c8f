"""Gives a forward that computes the logits of every position the parameter ``logits_to_keep``.

``generate`` looks for that parameter and asks for the last position alone; for those of a few more where it checks
candidates. What it asks for is all it reads. A caller may use the parameter, too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from coterie.hf.last_logits import PARAMETER, head_to_narrow
from coterie.passes.current import carried
from coterie.passes.forwards import Covering, Forward, install
from coterie.spec import LAST_POSITIONS

Kept = int | torch.Tensor
"""As transformers takes it: so many positions at the end, 0 for all; or the positions, [N]."""


class _Asked:
    positions: Kept = 0
    in_slices: bool = False


def asked_for() -> Kept:
    """What this thread's forward pass was asked for, if its class's own forward does not know the parameter."""
    # Carried: of a model with an encoder the parts are passes, not the model whose forward is asked.
    return carried(_Asked, _Asked).positions


def in_slices() -> bool:
    """Whether this thread's forward passes make no more logits at once than those of the last positions take."""
    return carried(_Asked, _Asked).in_slices


@contextmanager
def slicing() -> Iterator[None]:
    """Inside, this thread's forward passes make the logits of all positions, but never all at once."""
    asked = carried(_Asked, _Asked)
    before, asked.in_slices = asked.in_slices, True
    try:
        yield
    finally:
        asked.in_slices = before


class _Keeping(Covering):
    """A model's forward, with the parameter."""

    def __init__(self, forward: Forward) -> None:
        functools.update_wrapper(self, forward, updated=())
        # What generate looks at to know whether it may ask.
        self.__dict__["__signature__"] = _with_parameter(inspect.signature(forward))

    def __call__(self, *args: Any, logits_to_keep: Kept = 0, **kwargs: Any) -> Any:
        asked = carried(_Asked, _Asked)
        before, asked.positions = asked.positions, logits_to_keep
        try:
            return self.beneath(*args, **kwargs)
        finally:
            asked.positions = before


def give_parameter(model: nn.Module) -> None:
    """Gives a model's forward the parameter; does nothing where it has it, or its logits are read otherwise.

    Raises:
        ContractError: If the class's head is not where it was.
    """
    head = head_to_narrow(model)
    if head is None:
        return
    # By hooks: how the head computes is for others to choose.
    head.register_forward_pre_hook(_narrow)
    head.register_forward_hook(_select)
    install(model, "logits", _Keeping(model.forward))


def _narrow(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Gives a head the last positions, as many as make a product that rounds as that of all."""
    kept = asked_for()
    if not isinstance(kept, int) or kept < 1 or not args or args[0].dim() != 3:
        return None
    rows = max(kept, LAST_POSITIONS)
    if args[0].shape[1] <= rows:
        return None
    # One after the other, as all of them are: else torch may choose another product.
    return (args[0][:, -rows:].contiguous(), *args[1:])


def _select(head: nn.Module, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor | None:
    """Of what the head made, what was asked for."""
    kept = asked_for()
    if isinstance(kept, int):
        return None if kept < 1 or logits.shape[1] <= kept else logits[:, -kept:]
    return logits[:, kept]


def _with_parameter(signature: inspect.Signature) -> inspect.Signature:
    added = inspect.Parameter(PARAMETER, inspect.Parameter.KEYWORD_ONLY, default=0, annotation=Kept)
    # What takes any other keyword comes last.
    parameters = sorted((*signature.parameters.values(), added), key=lambda one: one.kind)
    return signature.replace(parameters=parameters)
