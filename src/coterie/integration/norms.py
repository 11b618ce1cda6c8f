"""Normalisation layers of a decode step, in one native call each where that gives the bits of the class's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.kernels.dense import NormForward, RmsNorm, epsilon_of, exact_rms_norm
from coterie.native import library
from coterie.passes.forwards import covers_class, install

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
            install(module, "native", NormForward(module, norm))
