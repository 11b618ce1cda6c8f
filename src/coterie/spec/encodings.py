"""How a parameter is stored as codes and scales: names, dtypes, shapes, groups. No tensors, no arithmetic.

Our own schemes are :data:`SCHEME_FORMATS`, and :mod:`coterie.quant` has the arithmetic of each. What checkpoints bring
along is :data:`CHECKPOINT_ENCODINGS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal, get_args

from coterie.errors import UsageError
from coterie.spec.layout import DTYPE_BYTES

Shape = tuple[int, ...]
Facts = tuple[str, Shape]
"""safetensors' name of a tensor's dtype, and its shape."""

NATIVE = "native"
"""The scheme that keeps the checkpoint's own dtype and bits."""

GROUP = 64
"""Weights along the input that share a scale, where a scheme's name says nothing else."""

GROUPS = (32, GROUP, 128)
"""How many weights may share a scale."""

Numbers = Literal["sym", "zero", "zp"]
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
"""What is stored for a group beside the codes: ``sym``, a scale alone; ``zero``, a scale and a zero, both floating
numbers; ``zp``, a scale and a zero point, a whole number among the codes."""

SCALE_DTYPES = ("BF16", "F16", "F32")
"""safetensors' names of the dtypes that scales and zeros may have."""


def group_size(columns: int, group: int = GROUP) -> int:
    """How many neighbouring weights of a row of ``columns`` form a group.

    As many as the scheme says, if that divides the row. Else the largest of 64 and 32 below that which does, and if
    neither does, as many as the scheme says, with a shorter group at the end. A pure function of the scheme and the
    row's length, so that a record need not say it.

    Args:
        columns: Weights of a row.
        group: What the scheme says, one of :data:`GROUPS`.
    """
    if columns % group == 0:
        return group
    smaller = [size for size in GROUPS if size < group and columns % size == 0]
    return max(smaller, default=group)


def group_count(columns: int, group: int = GROUP) -> int:
    """Groups of a row, a shorter one at the end included."""
    return -(-columns // group_size(columns, group))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding(ABC):
    """A form in which a matrix is stored as two tensors: codes, and the scales of blocks of them.

    Attributes:
        name: As manifests and configurations have it.
        code_bits: Bits of the code of one weight. An element of the tensor of codes is a byte in every encoding.
    """

    name: str
    code_bits: int

    @property
    @abstractmethod
    def ends(self) -> tuple[tuple[str, str], ...]:
        """What follows the parameter's name in the names of its codes and of its scales.

        A second pair is for a matrix that the module holds as [inputs, outputs].
        """

    @abstractmethod
    def fits(self, codes: Facts, scales: Facts, shape: Shape) -> bool:
        """Whether such codes and scales make a parameter of this shape."""

    def values(self, elements: int) -> int:
        """How many weights so many elements of codes have room for."""
        return elements * 8 // self.code_bits

    def scales_of(self, codes: str) -> str | None:
        """Name of the scales that belong to codes of this name; None for a name that codes do not have."""
        return next((codes.removesuffix(end) + scales for end, scales in self.ends if codes.endswith(end)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeFormat(Encoding):
    """A scheme of ours: codes of whole rows, and a number or two for each group of a row.

    Attributes:
        code_dtype: safetensors' name of the codes' dtype.
        filled_to: A row of codes is filled with zeros to a multiple of so many weights.
        group: Weights that share a scale, one of :data:`GROUPS`, or 16 of NVFP4; None for all of a row.
        numbers: What is stored for a group.
        scale_dtype: safetensors' name of the dtype of scales and zeros.
        made_here: Whether weights can be quantised to it. What else there is, quantised checkpoints have, and it is
            kept as it is.
    """

    code_dtype: str
    filled_to: int = 1
    group: int | None = GROUP
    numbers: Numbers = "sym"
    scale_dtype: str = "BF16"
    made_here: bool = True

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """``_int4`` and ``_int4_scales``; ``_int4t`` and ``_int4t_scales``."""
        return tuple((end, f"{end}_scales") for end in (f"_{self.name}", f"_{self.name}t"))

    @property
    def bits(self) -> float:
        """Bits per weight in long rows of whole groups."""
        return 8 * self.nbytes(1, _LONG_ROW) / _LONG_ROW

    def group_size(self, columns: int) -> int:
        """How many neighbouring weights of a row of ``columns`` share a scale."""
        return columns if self.group is None else group_size(columns, self.group)

    def group_count(self, columns: int) -> int:
        """Groups of a row, a shorter one at the end included."""
        return -(-columns // self.group_size(columns))

    def parts(self, rows: int, columns: int) -> tuple[Facts, Facts]:
        """Dtype and shape of the codes and of the scales of a matrix; rows are outputs, groups run along a row."""
        filled = -(-columns // self.filled_to) * self.filled_to
        groups = self.group_count(columns)
        scales: Facts = (self.scale_dtype, (rows, groups))
        if self.numbers == "zero":
            scales = (self.scale_dtype, (rows, groups, 2))
        elif self.numbers == "zp":
            scales = ("U8", (rows, groups * DTYPE_BYTES[self.scale_dtype] + points_nbytes(groups)))
        return (self.code_dtype, (rows, filled * self.code_bits // 8)), scales

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix of this shape, scales included."""
        return sum(prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in self.parts(rows, columns))

    def fits(self, codes: Facts, scales: Facts, shape: Shape) -> bool:
        """Whether they are those of a matrix [outputs, inputs] of this shape."""
        return len(shape) == 2 and (codes, scales) == self.parts(*shape)

    def fit_together(self, codes: Facts, scales: Facts) -> bool:
        """Whether they are those of any matrix."""
        if len(codes[1]) != 2:
            return False
        rows, elements = codes[1]
        longest = self.values(elements)
        return any(
            self.fits(codes, scales, (rows, columns)) for columns in range(longest - self.filled_to + 1, longest + 1)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvfp4(SchemeFormat):
    """NVFP4: e2m1 numbers, two to a byte, an e4m3 scale for each group of 16, and a divisor of all scales of a matrix.

    A row has its scales and then the divisor, a little-endian float32. Each row has it, so that rows of matrices with
    different divisors can lie in one parameter.
    """

    def parts(self, rows: int, columns: int) -> tuple[Facts, Facts]:
        """Dtype and shape of the codes and of the scales of a matrix."""
        groups = -(-columns // self.filled_to)
        scales = groups * DTYPE_BYTES[self.scale_dtype] + DTYPE_BYTES["F32"]
        return (self.code_dtype, (rows, groups * self.filled_to * self.code_bits // 8)), ("U8", (rows, scales))

    def fits(self, codes: Facts, scales: Facts, shape: Shape) -> bool:
        """Whether they are those of a matrix [outputs, inputs] of this shape, whose rows are whole groups."""
        return len(shape) == 2 and shape[1] % self.filled_to == 0 and (codes, scales) == self.parts(*shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8(Encoding):
    """e4m3 numbers under the parameter's own name, with a scale for each block of a grid that divides the matrix."""

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """Nothing, and what transformers appends to the name for that of the scales."""
        return (("", "_scale_inv"),)

    def fits(self, codes: Facts, scales: Facts, shape: Shape) -> bool:
        """Whether they make a parameter of this shape."""
        return (
            codes == ("F8_E4M3", shape)
            and len(shape) == 2
            and scales[0] in ("F32", "F16", "BF16", "F8_E8M0", "U8")
            and len(scales[1]) == 2
            and self.divides(shape, scales[1])
        )

    @staticmethod
    def divides(shape: Shape, scales: Shape) -> bool:
        """Whether a weight ``[..., N, K]`` divides into the blocks of a grid of scales ``[..., n, k]``.

        transformers takes the size of a block from the grid, whatever the configuration states.
        """
        rows, columns = scales[-2:] if len(scales) >= 2 else (1, 1)
        return shape[-2] % rows == 0 and shape[-1] % columns == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4(Encoding):
    """e2m1 numbers, two to a byte, with an exponent for each block of a row; the module holds the matrix transposed."""

    values_per_scale: int

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """As gpt-oss has them."""
        return (("_blocks", "_scales"),)

    def fits(self, codes: Facts, scales: Facts, shape: Shape) -> bool:
        """Whether they make a parameter of this shape."""
        (dtype, blocks), (scales_dtype, grid) = codes, scales
        return (
            dtype == scales_dtype == "U8"
            and len(blocks) == 3
            and blocks[:2] == grid
            and self.values(blocks[2]) == self.values_per_scale
            and shape == (blocks[1] * self.values_per_scale, blocks[0])
        )


def points_nbytes(groups: int) -> int:
    """Bytes of the zero points of a row of so many groups: 4 bits each, filled to a whole number of 2 bytes."""
    return 2 * -(-groups // 4)


_LONG_ROW = 4 * max(GROUPS)
"""Columns of a row in which no scheme fills anything up."""

_DEFAULT_NUMBERS: dict[int, Numbers] = {2: "zero", 3: "zero", 4: "zero", 5: "zero", 6: "zero", 8: "sym"}
"""By the bits of a code: what a name means that says nothing of it."""


def _name(bits: int, group: int, numbers: Numbers, scale_dtype: str) -> str:
    """``int4``, ``int4-g128``, ``int4-g32-sym-f16``: what is usual is left out."""
    parts = [f"int{bits}"]
    parts += [f"g{group}"] if group != GROUP else []
    parts += [numbers] if numbers != _DEFAULT_NUMBERS[bits] else []
    parts += [scale_dtype.lower()] if scale_dtype != "BF16" else []
    return "-".join(parts)


def _format(
    bits: int, group: int = GROUP, numbers: Numbers | None = None, scale_dtype: str = "BF16", *, made_here: bool = True
) -> SchemeFormat:
    numbers = numbers or _DEFAULT_NUMBERS[bits]
    return SchemeFormat(
        name=_name(bits, group, numbers, scale_dtype),
        code_bits=bits,
        code_dtype="I8" if bits == 8 else "U8",
        filled_to={4: 2, 8: 1}.get(bits, 16),
        group=group,
        numbers=numbers,
        scale_dtype=scale_dtype,
        made_here=made_here,
    )


_SCHEMES = (
    _format(2),
    _format(3),
    _format(4),
    _format(5),
    _format(6),
    _format(8),
)
_OTHER_GROUPS = tuple(_format(bits, group) for bits, group in product(_DEFAULT_NUMBERS, GROUPS) if group != GROUP)
_OF_CHECKPOINTS = tuple(
    _format(bits, group, numbers, dtype, made_here=False)
    for bits, of_bits in ((4, NUMBERS), (8, ("sym", "zero")))
    for group, numbers, dtype in product(GROUPS, of_bits, SCALE_DTYPES)
    if (numbers, dtype) != (_DEFAULT_NUMBERS[bits], "BF16")
)
NVFP4 = Nvfp4(
    name="nvfp4",
    code_bits=4,
    code_dtype="U8",
    filled_to=16,
    group=16,
    scale_dtype="F8_E4M3",
    made_here=False,
)
"""The one scheme whose codes are floating numbers."""

SCHEME_FORMATS = {scheme.name: scheme for scheme in (*_SCHEMES, *_OTHER_GROUPS, *_OF_CHECKPOINTS, NVFP4)}
"""The schemes that records and dense files may be in, by name."""

SCHEMES_MADE_HERE = tuple(name for name, scheme in SCHEME_FORMATS.items() if scheme.made_here)
"""Those that weights can be quantised to."""

USUAL_SCHEMES = tuple(scheme.name for scheme in _SCHEMES)
"""Those in groups of 64: what is chosen from where nobody names a scheme, fewest bits first."""

AFFINE_SCHEMES = tuple(scheme.name for scheme in _SCHEMES if scheme.numbers == "zero")
"""Those with groups of 64, and a scale and a zero for each, fewest bits first: ``weight = code * scale + zero``."""


def scheme_name(bits: int, group: int = GROUP, numbers: Numbers | None = None, scale_dtype: str = "BF16") -> str:
    """The name of a scheme.

    Args:
        bits: Bits of a code.
        group: Weights that share a scale, one of :data:`GROUPS`.
        numbers: What is stored for a group; None for what the scheme has whose name says nothing of it.
        scale_dtype: One of :data:`SCALE_DTYPES`.

    Raises:
        UsageError: If there is no such scheme.
    """
    numbers = numbers or _DEFAULT_NUMBERS.get(bits, "zero")
    wanted = (bits, group, numbers, scale_dtype)
    for name, one in SCHEME_FORMATS.items():
        if (one.code_bits, one.group, one.numbers, one.scale_dtype) == wanted:
            return name
    raise UsageError(
        f"There is no scheme of {bits} bits in groups of {group} with {numbers!r} numbers in {scale_dtype}.",
        advice=f"Groups have {', '.join(map(str, GROUPS))} weights; docs/format.md lists the schemes.",
        bits=bits,
        group=group,
        numbers=numbers,
        scale_dtype=scale_dtype,
    )


_BY_ENDS = {codes: (scheme, scales) for scheme in SCHEME_FORMATS.values() for codes, scales in scheme.ends}


def scheme_of_codes(field: str) -> tuple[SchemeFormat, str] | None:
    """The scheme of which a field of this name is the codes, and the name of their scales; None if it is of none."""
    parameter, underscore, end = field.rpartition("_")
    found = _BY_ENDS.get(underscore + end)
    return None if found is None else (found[0], parameter + found[1])


FP8 = Fp8(name="fp8", code_bits=8)
MXFP4 = Mxfp4(name="mxfp4", code_bits=4, values_per_scale=32)
CHECKPOINT_ENCODINGS: tuple[Encoding, ...] = (FP8, MXFP4)
"""What experts of checkpoints are quantised with."""

SCHEME_NAMES = (*sorted(USUAL_SCHEMES, key=lambda name: SCHEME_FORMATS[name].bits), NATIVE)
"""The usual ways in which weights are stored, the smallest first: with losses, or as in the checkpoint."""


_JOINT = "+"


def record_scheme(schemes: Sequence[str]) -> str:
    """The scheme of a record whose matrices are in these: one name if they are alike, else all, joined by ``+``."""
    return schemes[0] if len(set(schemes)) == 1 else _JOINT.join(schemes)


def matrix_schemes(scheme: str, count: int) -> tuple[str, ...]:
    """The scheme of each matrix of a record.

    Args:
        scheme: The record's, one name for all matrices or one for each, joined by ``+``.
        count: How many matrices it has.

    Raises:
        ValueError: If it names another number of schemes.
    """
    names = tuple(scheme.split(_JOINT))
    if len(names) not in (1, count):
        raise ValueError(f"{scheme!r} names {len(names)} schemes, and a record has {count} matrices")
    return names * count if len(names) == 1 else names


def schemes_named(scheme: str) -> frozenset[str]:
    """The names in a record's scheme."""
    return frozenset(scheme.split(_JOINT))
