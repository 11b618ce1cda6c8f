"""How a parameter is stored as codes and scales: names, dtypes, shapes, groups. No tensors, no arithmetic.

Our own schemes are :data:`SCHEME_FORMATS`, and :mod:`coterie.quant` has the arithmetic of each. What checkpoints bring
along is :data:`CHECKPOINT_ENCODINGS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from coterie.spec.layout import DTYPE_BYTES

Shape = tuple[int, ...]
Facts = tuple[str, Shape]
"""safetensors' name of a tensor's dtype, and its shape."""

NATIVE = "native"
"""The scheme that keeps the checkpoint's own dtype and bits."""

GROUP = 64
"""Weights along the input that share a scale."""

_SMALLER_GROUP = 32


def group_size(columns: int) -> int:
    """How many neighbouring weights of a row of ``columns`` form a group.

    64 if that divides the row, else 32 if that does (128 divides no row that 64 does not), else 64 with a shorter group
    at the end. A pure function of the row's length, so that a record need not say it.
    """
    return _SMALLER_GROUP if columns % GROUP and columns % _SMALLER_GROUP == 0 else GROUP


def group_count(columns: int) -> int:
    """Groups of a row, a shorter one at the end included."""
    return -(-columns // group_size(columns))


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
    """A lossy scheme of ours: codes of whole rows, and a bfloat16 number or a few for each group of a row.

    Attributes:
        code_dtype: safetensors' name of the codes' dtype.
        numbers_per_group: Shape of what is stored for a group: ``()`` for a scale, ``(2,)`` for a scale and a zero.
        filled_to: A row of codes is filled with zeros to a multiple of so many weights.
        groups: How many groups a row of so many weights has.
    """

    code_dtype: str
    numbers_per_group: Shape
    filled_to: int = 1
    groups: Callable[[int], int] = group_count

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """``_int4`` and ``_int4_scales``; ``_int4t`` and ``_int4t_scales``."""
        return tuple((end, f"{end}_scales") for end in (f"_{self.name}", f"_{self.name}t"))

    @property
    def bits(self) -> float:
        """Bits per weight in rows of whole groups of 64."""
        return 8 * self.nbytes(1, GROUP) / GROUP

    def parts(self, rows: int, columns: int) -> tuple[Facts, Facts]:
        """Dtype and shape of the codes and of the scales of a matrix; rows are outputs, groups run along a row."""
        filled = -(-columns // self.filled_to) * self.filled_to
        return (
            (self.code_dtype, (rows, filled * self.code_bits // 8)),
            ("BF16", (rows, self.groups(columns), *self.numbers_per_group)),
        )

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


def _affine(bits: int, filled_to: int) -> SchemeFormat:
    return SchemeFormat(name=f"int{bits}", code_bits=bits, code_dtype="U8", numbers_per_group=(2,), filled_to=filled_to)


_SCHEMES = (
    _affine(2, 16),
    _affine(3, 16),
    _affine(4, 2),
    _affine(5, 16),
    _affine(6, 16),
    SchemeFormat(name="int8", code_bits=8, code_dtype="I8", numbers_per_group=()),
)
SCHEME_FORMATS = {scheme.name: scheme for scheme in _SCHEMES}
"""The lossy schemes."""

AFFINE_SCHEMES = tuple(scheme.name for scheme in _SCHEMES if scheme.numbers_per_group)
"""Those with a scale and a zero for each group, fewest bits first: ``weight = code * scale + zero``."""

FP8 = Fp8(name="fp8", code_bits=8)
MXFP4 = Mxfp4(name="mxfp4", code_bits=4, values_per_scale=32)
CHECKPOINT_ENCODINGS: tuple[Encoding, ...] = (FP8, MXFP4)
"""What experts of checkpoints are quantised with."""

SCHEME_NAMES = (*sorted(SCHEME_FORMATS, key=lambda name: SCHEME_FORMATS[name].bits), NATIVE)
"""The ways in which weights are stored, the smallest first: with losses, or as in the checkpoint."""

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
