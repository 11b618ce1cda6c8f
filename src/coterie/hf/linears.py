"""Which weights outside experts are those of linear layers, and may be stored in fewer bits.

Decided from the modules of the skeleton. What decides about other computations keeps its dtype: routers and gates. So
does the vocoder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from coterie.hf.dense_parts import DenseParts, router_paths
from coterie.hf.keymap import KeyMap
from coterie.spec.dense_parts import DENSE_PARTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEWEST_OUTPUTS = 16
"""Layers with fewer outputs are gates (one for a shared expert, one per head, ...) and have next to no bytes."""


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """The weight of a linear layer outside experts.

    Attributes:
        part: The part of the model that it belongs to, see :data:`coterie.spec.dense_parts.DENSE_PARTS`.
        shape: Outputs and inputs.
    """

    part: str
    shape: tuple[int, int]


def linear_weights(model: PreTrainedModel, keymap: KeyMap) -> dict[str, LinearWeight]:
    """The weights of linear layers that a scheme may be applied to.

    Left out are routers and gates, the vocoder, weights that are tied to an embedding or to each other, weights that
    transformers keeps in another dtype than the model's, and those that it rearranges on loading.

    Args:
        model: The skeleton.
        keymap: The claims of its checkpoint's tensors.

    Returns:
        By checkpoint name.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    routers = (f"{path}.weight" for bank in keymap.banks for path in router_paths(model, bank))
    left_out = {*tied, *tied.values(), *routers}
    upcast = tuple(model._get_dtype_plan(model.dtype))
    parts = DenseParts(model, keymap.banks)
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found: dict[str, LinearWeight] = {}
    for path, module in model.named_modules():
        # Subclasses and parametrised ones compute in their own way; what is in two places cannot be replaced in one.
        if type(module) is not nn.Linear or "weight" not in module._parameters or places[id(module)] > 1:
            continue
        name = f"{path}.weight"
        part = parts.of(name)
        kept = name in left_out or DENSE_PARTS[part].kept is not None or any(one in name for one in upcast)
        outputs, inputs = module.weight.shape
        if not kept and outputs >= _FEWEST_OUTPUTS and module.weight.dtype == model.dtype:
            found[name] = LinearWeight(part, (outputs, inputs))
    return {
        name: found[target]
        for name, target in keymap.dense.items()
        if target in found and name not in keymap.rearranged
    }
