"""Layers and routers of a decode step in few native calls, in models whose linear layers are in a lossy scheme.

In such a model output is the rounded weights' within rounding, not to the bit; so what is between its products may be
computed with fewer roundings and without the cost of some thirty operations of torch for every layer. Which classes
compute what is computed here is decided by their source. Whatever is unusual about a call (several tokens of a
sequence, masks of more than padding, autocast, hooks, other caches) goes to the class's own forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.integration.code_predictor import NativeCodePredictor
from coterie.integration.token_layer import LayerGroup, TokenLayer
from coterie.integration.token_router import TokenRouter
from coterie.kernels import QuantisedLinear
from coterie.native import TokenStates, library
from coterie.passes.forwards import covers_class, install

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def install_native_layers(model: PreTrainedModel) -> None:
    """Gives decoder layers and routers their native forwards where linear layers are in a scheme.

    Args:
        model: With its weights, and normalisation as it is to stay.
    """
    native = library()
    rounded = {_layer_of(name) for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    if native is None or not rounded:
        return
    for name, module in model.named_modules():
        # In a layer whose linear layers are the checkpoint's own, the router has the bits of its class.
        may_be = _layer_of(name) in rounded and covers_class(module, "native")
        router = TokenRouter.of(module, native) if may_be else None
        if router is not None:
            install(module, "native", router)
    states = TokenStates()
    groups: dict[str, LayerGroup] = {}
    # After the routers: a layer computes what its router's forward does.
    for name, module in model.named_modules():
        stack = name.rpartition(".")[0]
        layer = TokenLayer.of(module, native, groups.setdefault(stack, LayerGroup(states)))
        if layer is not None:
            install(module, "native", layer)
    # After its layers, which it stands for.
    for module in model.modules():
        predictor = NativeCodePredictor.of(module, native)
        if predictor is not None:
            install(module, "native", predictor)


def _layer_of(path: str) -> str:
    """The decoder layer that a module is in: its path up to the first number."""
    segments = path.split(".")
    end = next((place for place, segment in enumerate(segments) if segment.isdigit()), len(segments))
    return ".".join(segments[: end + 1])
