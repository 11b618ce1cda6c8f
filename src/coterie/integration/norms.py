"""Normalisation layers of a decode step, in one native call each where that gives the bits of the class's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.kernels.norms import RmsNorm, epsilon_of, exact_rms_norm, serves
from coterie.native import library
from coterie.passes.forwards import covers_class, install

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NativeForward:
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


def install_native_norms(model: PreTrainedModel) -> None:
    """Gives normalisation layers a native forward where it has the bits of their own.

    Does nothing where the native library was not built.

    Args:
        model: With its weights.
    """
    native = library()
    if native is None:
        return
    tried: dict[tuple[object, ...], RmsNorm | None] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if "RMSNorm" not in type(module).__name__ or weight is None or not covers_class(module, "native"):
            continue
        kind = (type(module), weight.shape, weight.dtype, epsilon_of(module))
        if kind not in tried:
            tried[kind] = exact_rms_norm(native, module, type(module).forward)
        norm = tried[kind]
        if norm is not None:
            install(module, "native", NativeForward(module, norm))
