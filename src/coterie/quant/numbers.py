"""What is stored for the groups of a matrix beside its codes: scales, and zeros or zero points where a scheme has them.

Zero points are 4 bits each, in the bytes behind a row's scales: those of groups 2i and 2i + 1 are in the lower and the
upper half of byte i, and a row is filled up to a whole number of 2 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from coterie.errors import UsageError
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.quant.planes import pack, unpack
from coterie.spec.encodings import SchemeFormat

_POINT_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNumbers:
    """The numbers of N rows of G groups.

    Attributes:
        scales_NG: float32.
        zeros_NG: float32; None for a scheme without zeros.
        points_NG: Zero points, float32; None for a scheme without them.
    """

    scales_NG: torch.Tensor
    zeros_NG: torch.Tensor | None = None
    points_NG: torch.Tensor | None = None


def read_numbers(form: SchemeFormat, stored: torch.Tensor, groups: int) -> GroupNumbers:
    """The numbers that a tensor of scales stands for.

    Args:
        form: The scheme.
        stored: The scales of some rows, as the scheme has them.
        groups: How many groups a row has.
    """
    if form.numbers == "zero":
        scales_NG, zeros_NG = stored.float().unbind(-1)
        return GroupNumbers(scales_NG=scales_NG, zeros_NG=zeros_NG)
    if form.numbers == "sym":
        return GroupNumbers(scales_NG=stored.float())
    dtype = TORCH_DTYPES[form.scale_dtype]
    nbytes = groups * dtype.itemsize
    # Copied: bytes of a row begin where numbers of this dtype need not.
    scales_NG = stored[:, :nbytes].flatten().clone().view(dtype).view(-1, groups).float()
    return GroupNumbers(scales_NG=scales_NG, points_NG=unpack(stored[:, nbytes:], _POINT_BITS, groups).float())


def store_numbers(form: SchemeFormat, scales_NG: torch.Tensor, others_NG: torch.Tensor | None) -> torch.Tensor:
    """The tensor of scales of a scheme.

    Args:
        form: The scheme.
        scales_NG: Scales, of the scheme's dtype.
        others_NG: Zeros of the same dtype, or zero points, uint8 from 0 to 15; None for a scheme that has neither.

    Raises:
        UsageError: If they are not what the scheme has.
    """
    dtype = TORCH_DTYPES[form.scale_dtype]
    wanted = {"sym": None, "zero": dtype, "zp": torch.uint8}[form.numbers]
    _check(form, "scales", scales_NG, dtype, scales_NG.shape)
    if wanted is None or others_NG is None:
        if wanted is not None or others_NG is not None:
            beside = "nothing" if wanted is None else f"{wanted} for each group"
            raise UsageError(f"{form.name} has {beside} beside its scales.", scheme=form.name)
        return scales_NG.contiguous()
    _check(form, "zeros" if form.numbers == "zero" else "zero points", others_NG, wanted, scales_NG.shape)
    if form.numbers == "zero":
        return torch.stack([scales_NG, others_NG], dim=-1).contiguous()
    if others_NG.numel() and int(others_NG.max()) >= 2**_POINT_BITS:
        raise UsageError(
            f"A zero point of {form.name} is from 0 to {2**_POINT_BITS - 1}, not {int(others_NG.max())}.",
            scheme=form.name,
        )
    points = pack(pad(others_NG, (0, -others_NG.shape[1] % 4)), _POINT_BITS, 4)
    return torch.cat([scales_NG.contiguous().view(torch.uint8), points], dim=1)


def _check(form: SchemeFormat, what: str, tensor: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if tensor.dtype != dtype or tensor.dim() != 2 or tensor.shape != shape:
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise UsageError(f"The {what} of {form.name} must be {dtype} {list(shape)}, not {got}.", got=got)
