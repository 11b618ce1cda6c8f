"""MLX's quantisation, which has its own key in ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.hf.packings.packings import Packings, Refused, distinct, settings, whole_number
from coterie.spec.packing import Packing

_AS_IN_TRANSFORMERS = ("deepseek_v2", "glm4_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Types of models of which mlx-lm changes nothing but the names of experts (``sanitize`` of its models). Of others it
adds to norms, splits or turns weights, which no shape tells."""


def check_mlx(model_type: object) -> None:
    """Refuses a model whose weights MLX may have changed.

    Raises:
        Refused: Naming its type.
    """
    if model_type not in _AS_IN_TRANSFORMERS:
        known = ", ".join(_AS_IN_TRANSFORMERS)
        raise Refused(
            f"is of the type {ascii(model_type)[:40]}, whose weights MLX may have rearranged; of MLX {known} are read"
        )


def mlx(found: dict[str, Any]) -> Packings:
    """What ``quantization`` of an MLX checkpoint says, or ``quantization_config``, which is the same there.

    Raises:
        Refused: If it is of a form that is not read.
    """
    usual = _packing(found)
    # Other keys are the paths of modules; false stands for one that is not quantised.
    singles = {name: _packing({**_own(found), **one}) for name, one in settings({"all": found}, "all").items()}
    return Packings(kind="mlx", candidates=distinct([usual, *singles.values()]), of_modules=singles)


def _own(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("group_size", "bits", "mode") if key in found}


def _packing(stated: Mapping[str, Any]) -> Packing:
    mode = stated.get("mode", "affine")
    if mode != "affine":
        raise Refused(f"has MLX's mode {ascii(mode)[:40]}, and only affine is read")
    bits, group = whole_number(stated, "bits", 2, 8), whole_number(stated, "group_size", 1, 2**20)
    return Packing(kind="mlx", bits=bits, group=group, symmetric=False)
