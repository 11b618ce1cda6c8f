"""GPTQ's packing, of GPTQModel and AutoGPTQ, and of AutoRound; AWQ's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.hf.packings.packings import Packings, Refused, distinct, group_of, settings, whole_number
from coterie.spec.packing import Packing

_WHOLE_WORDS = (2, 4, 8)
"""Bits of codes of which a word has a whole number."""


def gptq(found: dict[str, Any]) -> Packings:
    """What ``quantization_config`` of a GPTQ checkpoint says.

    Raises:
        Refused: If it is of a form that is not read.
    """
    form = found.get("checkpoint_format", found.get("format", "gptq"))
    if form not in ("gptq", "gptq_v2"):
        raise Refused(f"has its weights in GPTQ's format {ascii(form)[:40]}, and only gptq and gptq_v2 are read")
    if found.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise Refused(f"has codes packed into {ascii(found['pack_dtype'])[:40]}, and only int32 is read")
    singles = settings(found, "dynamic")
    # A name that begins with a minus stands for what is not quantised.
    stated = [found, *({**found, **one} for name, one in singles.items() if not name.startswith("-:"))]
    return Packings(kind="gptq", candidates=distinct([_gptq(one, form == "gptq") for one in stated]))


def _gptq(stated: Mapping[str, Any], points_less_one: bool) -> Packing:
    bits, group = whole_number(stated, "bits", 2, 8), group_of(stated)
    if bits not in _WHOLE_WORDS:
        raise Refused(
            f"has codes of {bits} bits, some of which lie in two words; of GPTQ only 2, 4 and 8 bits are read"
        )
    if stated.get("desc_act") and group is not None:
        raise Refused(
            "is quantised in the order of activations (desc_act), so that the inputs of a group are not neighbours. An "
            "expert's inputs cannot be put into another order for each of its matrices"
        )
    symmetric = bool(stated.get("sym", True))
    return Packing(kind="gptq", bits=bits, group=group, symmetric=symmetric, points_less_one=points_less_one)


def auto_round(found: dict[str, Any]) -> Packings:
    """What ``quantization_config`` of an AutoRound checkpoint says: GPTQ's packing, or AWQ's.

    Raises:
        Refused: If it is of a form that is not read.
    """
    form = found.get("packing_format", "auto_round:auto_gptq")
    if found.get("data_type", "int") != "int" or whole_number({"act_bits": 16} | found, "act_bits", 1, 32) < 16:
        raise Refused("is quantised by AutoRound to something else than whole numbers in weights alone")
    if form == "auto_round:auto_awq":
        return awq(found | {"zero_point": not found.get("sym", True)})
    # Those of auto_gptq are less one; the others are as they are.
    less_one = {"auto_round:auto_gptq": True, "auto_round": False, "auto_round:gptqmodel": False}
    if form not in less_one:
        raise Refused(f"has AutoRound's packing {ascii(form)[:40]}; auto_gptq, gptqmodel and auto_awq are read")
    stated = [found, *({**found, **one} for one in settings(found, "extra_config").values())]
    packings = [_gptq(one, less_one[form]) for one in stated if one.get("bits", 16) in _WHOLE_WORDS]
    if not packings:
        raise Refused(f"has codes of {ascii(found.get('bits'))[:20]} bits; 2, 4 and 8 are read")
    return Packings(kind="gptq", candidates=distinct(packings))


def awq(found: dict[str, Any]) -> Packings:
    """What ``quantization_config`` of an AWQ checkpoint says.

    Raises:
        Refused: If it is of a form that is not read.
    """
    form = str(found.get("version") or found.get("format") or "gemm").lower()
    if form != "gemm" or str(found.get("backend", "")).lower() == "llm-awq":
        raise Refused(f"has its weights in AWQ's format {ascii(form)[:40]}, and only gemm is read")
    bits, group = (
        whole_number({"bits": found.get("w_bit")} | found, "bits", 4, 4),
        group_of({"group_size": found.get("q_group_size")} | found),
    )
    # Zero points are there in any case; where config.json says that there are none, they stand in the middle.
    return Packings(kind="awq", candidates=(Packing(kind="awq", bits=bits, group=group, symmetric=False),))
