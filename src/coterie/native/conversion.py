"""Quantising and dequantising whole matrices, with the bits of the reference in ``coterie.quant``."""

from __future__ import annotations

import torch

from coterie.native.library import Library
from coterie.native.schemes import SCHEME_CODES

QUANTISED_FROM = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the weights that :func:`quantise` takes."""

DEQUANTISED_TO = (torch.float32, torch.bfloat16)
"""Dtypes that :func:`dequantise` gives."""


def quantise(
    library: Library, scheme: str, weights_NK: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> int | None:
    """Quantises a matrix of any shape and strides.

    Args:
        library: The library.
        scheme: One that :func:`coterie.native.knows`, and that weights are quantised to.
        weights_NK: In memory, of a dtype in ``QUANTISED_FROM``.
        codes: Where the scheme's codes go, contiguous, with the dtype and shape of its format.
        scales: Where its scales go, contiguous bfloat16, with the shape of its format.

    Returns:
        The first row that has a weight which is infinite, not a number or beyond bfloat16; codes and scales are then
        unspecified. None if all is well.
    """
    if weights_NK.dtype == torch.float16:
        weights_NK = weights_NK.float()
    row = library.functions.coterie_quantise(
        SCHEME_CODES[scheme],
        library.level,
        library.threads,
        weights_NK.data_ptr(),
        int(weights_NK.dtype == torch.bfloat16),
        *weights_NK.shape,
        *weights_NK.stride(),
        codes.data_ptr(),
        scales.data_ptr(),
    )
    return None if row < 0 else int(row)


def dequantise(library: Library, scheme: str, codes: torch.Tensor, scales: torch.Tensor, out_NK: torch.Tensor) -> None:
    """Writes the matrix that codes and scales stand for, all of them contiguous and as :func:`quantise` has them.

    Args:
        library: The library.
        scheme: One that :func:`coterie.native.knows`.
        codes: The codes.
        scales: The scales.
        out_NK: Of a dtype in ``DEQUANTISED_TO``.
    """
    library.functions.coterie_dequantise(
        SCHEME_CODES[scheme],
        library.level,
        library.threads,
        codes.data_ptr(),
        scales.data_ptr(),
        *out_NK.shape,
        int(out_NK.dtype == torch.bfloat16),
        out_NK.data_ptr(),
    )
