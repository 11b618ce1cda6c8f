"""compressed-tensors, of llm-compressor: groups of modules, each with a scheme of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coterie.hf.packings.packings import Packings, Refused, distinct, group_of, settings, whole_number
from coterie.spec.packing import Packing

PACKED = "pack-quantized"
FLOAT = "float-quantized"
NVFP4 = "nvfp4-pack-quantized"


def formats(found: Mapping[str, Any]) -> frozenset[str]:
    """The formats that weights are in.

    Raises:
        Refused: If it says nothing of weights.
    """
    whole = found.get("format")
    named = {str(group.get("format") or whole) for group in _groups(found)}
    if not named:
        raise Refused("has no config_groups that say how weights are quantised")
    return frozenset(named)


def compressed_tensors(found: dict[str, Any]) -> Packings:
    """What ``quantization_config`` of a checkpoint in the format ``pack-quantized`` says.

    Raises:
        Refused: If it is of a form that is not read.
    """
    return Packings(
        kind="compressed-tensors", candidates=distinct([_packing(weights) for weights in weights_of(found)])
    )


def nvfp4(found: dict[str, Any]) -> Packings:
    """What ``quantization_config`` of a checkpoint in the format ``nvfp4-pack-quantized`` says.

    Raises:
        Refused: If it is of a form that is not read.
    """
    return Packings(kind="nvfp4", candidates=distinct([_nvfp4(weights) for weights in weights_of(found)]))


def weights_of(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """How the weights of each group are quantised.

    Raises:
        Refused: If anything else than weights is, beside activations: then results are others.
    """
    if found.get("kv_cache_scheme"):
        raise Refused("has keys and values quantised (kv_cache_scheme), which is not done here")
    for key in ("sparsity_config", "transform_config"):
        if found.get(key) and found[key] != {"format": "dense"}:
            raise Refused(f"has a {key}, which is not supported")
    for group in _groups(found):
        weights = group.get("weights")
        if not isinstance(weights, dict):
            raise Refused("has config_groups that say nothing of weights")
        yield weights


def _groups(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(settings(found, "config_groups").values())


def _packing(weights: Mapping[str, Any]) -> Packing:
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    if kind != "int" or strategy not in ("group", "channel"):
        raise Refused(
            f"has weights of type {ascii(kind)[:20]} with the strategy {ascii(strategy)[:20]} packed; whole numbers by "
            "group or by channel are read"
        )
    order = weights.get("actorder")
    if order in ("group", True, "dynamic"):
        raise Refused(
            "is quantised in the order of activations (actorder), so that the inputs of a group are not neighbours. An "
            "expert's inputs cannot be put into another order for each of its matrices"
        )
    return Packing(
        kind="compressed-tensors",
        bits=whole_number(weights, "num_bits", 2, 8),
        group=None if strategy == "channel" else group_of(weights),
        symmetric=bool(weights.get("symmetric", True)),
    )


def _nvfp4(weights: Mapping[str, Any]) -> Packing:
    kind, group = weights.get("type"), weights.get("group_size")
    if (kind, weights.get("num_bits"), group, weights.get("symmetric", True)) != ("float", 4, 16, True):
        raise Refused(
            f"has weights of type {ascii(kind)[:20]} in groups of {ascii(group)[:20]} in {NVFP4}; symmetric floating "
            "numbers of 4 bits in groups of 16 are read"
        )
    return Packing(kind="nvfp4", bits=4, group=16)
