"""Schemes as the C code numbers them: ``numbers.h`` takes a number apart."""

from __future__ import annotations

import torch

from coterie.spec.encodings import GROUP, NATIVE, SCHEME_FORMATS, SchemeFormat

SCHEMES = ("int2", "int3", "int4", "int5", "int6", "int8")
"""How codes can be packed, in the order of the C code: schemes of these names have the usual groups and scales."""

PART_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
"""Dtypes of codes and scales by the names that safetensors gives them."""

_NUMBERS = {"sym": 1, "zero": 2, "zp": 3}
_DTYPES = {"BF16": 0, "F16": 1, "F32": 2}
_GROUPS = {GROUP: 0, 32: 1, 128: 2}


def _code(form: SchemeFormat) -> int | None:
    """The number of a scheme; None for one that the C code does not know."""
    packing = f"int{form.code_bits}"
    usual = SCHEME_FORMATS.get(packing)
    if packing not in SCHEMES or usual is None or form.group not in _GROUPS or form.code_dtype != usual.code_dtype:
        return None
    numbers = 0 if form.numbers == usual.numbers else _NUMBERS[form.numbers]
    return SCHEMES.index(packing) | numbers << 4 | _DTYPES[form.scale_dtype] << 6 | _GROUPS[form.group] << 8


SCHEME_CODES = {
    **{name: code for name, form in SCHEME_FORMATS.items() if (code := _code(form)) is not None},
    NATIVE: len(SCHEMES),
}
"""Name of a scheme, or of what is in bfloat16 as it is → its number."""


def knows(scheme: str) -> bool:
    """Whether the library computes with matrices in this scheme."""
    return scheme in SCHEME_CODES and scheme != NATIVE
