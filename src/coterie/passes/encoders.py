"""The encoders of pictures and sounds within a model's passes: they can have passes of their own, and end at any layer.

An encoder is run by the pass over the tokens that show what it encodes, and can take as long as they do. Whoever
computes for several requests has it end the pass (:attr:`~coterie.passes.current.Request.encodings`), and begins the
same pass anew later. That finds what was encoded, as it always is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coterie.hf.parts import ENCODERS
from coterie.passes.current import EncodedAhead, current_request
from coterie.passes.forwards import Covering, at, install


class _Encoder(Covering):
    """The forward of an encoder."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        encodings = current_request().encodings
        if encodings is None:
            return self.beneath(*args, **kwargs)
        given = (id(self), args, kwargs)
        for known, result in encodings:
            if _same(known, given):
                return result
        encodings.append((given, self.beneath(*args, **kwargs)))
        raise EncodedAhead


class _Layer(Covering):
    """The forward of one of its layers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = current_request()
        if request.before_layer is not None:
            request.before_layer()
        return self.beneath(*args, **kwargs)


def watch_encoders(model: nn.Module) -> None:
    """Has a model's encoders do what requests say. Harmless when repeated.

    Args:
        model: The model.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ENCODERS and at(module, "encoding") is None:
            install(module, "encoding", _Encoder())
            for layers in module.children():
                for layer in layers if isinstance(layers, nn.ModuleList) else ():
                    install(layer, "encoding", _Layer())


def _same(one: Any, other: Any) -> bool:
    """Whether an encoder is given the same."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)
