"""How a quantised checkpoint packs the weight of a linear layer: which tensors it has, and what their shapes say.

A packed weight of N outputs and K inputs is codes of a few bits, and for each group of neighbouring inputs of a row a
scale, and a zero in one of three ways. NVFP4 has one more number for all scales of a weight. The arithmetic is in
:mod:`coterie.quant.packed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from coterie.errors import UsageError
from coterie.spec.encodings import NVFP4, scheme_name

PackingKind = Literal["compressed-tensors", "nvfp4", "gptq", "awq", "mlx"]
Shape = tuple[int, ...]

WORD_BITS = 32
"""Codes are packed into words of so many bits."""

_GROUPS = (128, 64, 32)

_REQUIRED: dict[PackingKind, dict[str, str]] = {
    "compressed-tensors": {"codes": "weight_packed", "scales": "weight_scale"},
    "nvfp4": {"codes": "weight_packed", "scales": "weight_scale", "divisor": "weight_global_scale"},
    "gptq": {"codes": "qweight", "scales": "scales", "points": "qzeros"},
    "awq": {"codes": "qweight", "scales": "scales", "points": "qzeros"},
    "mlx": {"codes": "weight", "scales": "scales", "biases": "biases"},
}
_OPTIONAL: dict[PackingKind, dict[str, str]] = {
    "compressed-tensors": {"points": "weight_zero_point", "order": "weight_g_idx"},
    "nvfp4": {},
    "gptq": {"order": "g_idx"},
    "awq": {},
    "mlx": {},
}
_UNUSED: dict[PackingKind, tuple[str, ...]] = {
    # The shape is known; the rest is of activations, which are not quantised here.
    "compressed-tensors": ("weight_shape", "input_scale", "input_zero_point", "input_global_scale"),
    "nvfp4": ("input_scale", "input_global_scale"),
    "gptq": (),
    "awq": (),
    "mlx": (),
}


_WORDS = ("I32", "U32", "I64")
_FLOATS = ("F16", "BF16", "F32")
_DTYPES: dict[str, tuple[str, ...]] = {"scales": _FLOATS, "biases": _FLOATS, "divisor": ("F32",)}
_DTYPES_OF_NVFP4 = {"codes": ("U8",), "scales": (NVFP4.scale_dtype,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How weights are packed.

    Attributes:
        kind: Whose format it is.
        bits: Bits of a code.
        group: Inputs that share a scale; None for all of a row.
        symmetric: Whether codes are around the middle of their range, so that zeros say nothing.
        points_less_one: Whether zero points are stored less one, as the first version of GPTQ's format has them.
    """

    kind: PackingKind
    bits: int
    group: int | None
    symmetric: bool = True
    points_less_one: bool = False

    @property
    def required(self) -> Mapping[str, str]:
        """What a packed weight cannot be without: role → the end of the tensor's name, in place of ``weight``."""
        return _REQUIRED[self.kind]

    @property
    def optional(self) -> Mapping[str, str]:
        """What it may have beside: role → end."""
        return _OPTIONAL[self.kind]

    @property
    def unused(self) -> tuple[str, ...]:
        """Ends of tensors beside it that its values do not depend on."""
        return _UNUSED[self.kind]

    def dtypes(self, role: str) -> tuple[str, ...]:
        """The dtypes that a tensor may have, by its role, as safetensors calls them."""
        return (_DTYPES_OF_NVFP4 if self.kind == "nvfp4" else {}).get(role) or _DTYPES.get(role, _WORDS)

    def shape(self, codes: Shape) -> tuple[int, int]:
        """Outputs and inputs, by the shape of the tensor of codes."""
        first, second = codes
        if self.kind == "nvfp4":
            return first, second * 8 // self.bits
        if self.kind == "gptq":
            return second, first * WORD_BITS // self.bits
        if self.kind == "awq":
            return second * WORD_BITS // self.bits, first
        return first, second * WORD_BITS // self.bits

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[Shape, ...]]:
        """The shapes that tensors of a weight [``rows``, ``columns``] may have, by role."""
        groups = 1 if self.group is None else -(-columns // self.group)
        if self.kind == "nvfp4":
            return {"codes": ((rows, columns * self.bits // 8),), "scales": ((rows, groups),), "divisor": ((1,),)}
        packed_rows, packed_columns = rows * self.bits // WORD_BITS, columns * self.bits // WORD_BITS
        if self.kind == "gptq":
            return {
                "codes": ((packed_columns, rows),),
                "scales": ((groups, rows),),
                "points": ((groups, packed_rows),),
                "order": ((columns,),),
            }
        if self.kind == "awq":
            return {
                "codes": ((columns, packed_rows),),
                "scales": ((groups, rows),),
                "points": ((groups, packed_rows),),
            }
        return {
            "codes": ((rows, packed_columns),),
            "scales": ((rows, groups),) if groups > 1 else ((rows, 1), (rows,)),
            "biases": ((rows, groups),),
            "points": ((-(-rows * self.bits // WORD_BITS), groups),),
            "order": ((columns,),),
        }

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether tensors of these shapes, by role, are those of a weight that is packed so."""
        if any(len(shapes[role]) != 2 for role in ("codes", "scales") if role in shapes):
            shapes = {
                role: shape if len(shape) != 1 else (*shape, 1) for role, shape in shapes.items() if role != "order"
            }
        if len(shapes["codes"]) != 2:
            return False
        rows, columns = self.shape(shapes["codes"])
        if self.group is not None and columns % self.group:
            return False
        allowed = self.shapes(rows, columns)
        return all(shape in allowed[role] for role, shape in shapes.items() if role in allowed)

    @property
    def numbers(self) -> Literal["sym", "zp", "zero"]:
        """What a group has: a scale alone, an integer zero point of its codes, or a floating number that is added."""
        if self.kind == "mlx":
            return "zero"
        return "sym" if self.symmetric else "zp"

    def stored_group(self) -> int | None:
        """The group of the scheme that takes the codes: of a larger one, each part has the scale again.

        Returns:
            128, 64 or 32; None if none of them divides the group.
        """
        if self.group is None:
            return _GROUPS[0]
        return next((group for group in _GROUPS if self.group % group == 0), None)

    def scheme(self, scale_dtype: str) -> str:
        """The scheme that takes codes, scales and zeros as they are.

        Args:
            scale_dtype: safetensors' name of the dtype of the scales.

        Raises:
            UsageError: If there is none; says why.
        """
        if self.kind == "nvfp4":
            return NVFP4.name
        group = self.stored_group()
        if group is None:
            raise UsageError(f"groups of {self.group} are not made of groups of 32", got=self.group)
        numbers = self.numbers
        if self.bits == 8 and numbers != "sym":
            # A point times a scale, and a bias plus half the range, have more bits than a shorter dtype.
            return scheme_name(8, group, "zero", "F32")
        if self.bits not in (4, 8) and numbers == "sym":
            return scheme_name(self.bits, group, "zero", scale_dtype)
        return scheme_name(self.bits, group, numbers, scale_dtype)
