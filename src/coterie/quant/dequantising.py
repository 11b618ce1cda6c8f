"""The parameters of an expert from the fields of its record, whatever they are encoded with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coterie.quant.fp8 import dequantise_fp8
from coterie.quant.mxfp4 import dequantise_mxfp4
from coterie.quant.registry import SCHEMES
from coterie.spec.encodings import FP8
from coterie.spec.parameters import StoredParameter


def dequantise(stored: StoredParameter, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """A parameter of one expert.

    Args:
        stored: Which fields make it, and how.
        tensors: The fields of the expert's record.
        dtype: Of the result.

    Returns:
        The parameter, contiguous; of an encoding that the checkpoint brought along, with the bits that transformers
        gives it. A plain field of that dtype is given itself.
    """
    if stored.encoding is None:
        return tensors[stored.positions[0]].to(dtype)
    codes, scales = (tensors[position] for position in stored.positions)
    scheme = SCHEMES.get(stored.encoding.name)
    if scheme is None:
        return (dequantise_fp8 if stored.encoding is FP8 else dequantise_mxfp4)(codes, scales, dtype)
    matrix = scheme.dequantise((codes, scales), stored.shape[0 if stored.transposed else 1], dtype)
    return matrix.t().contiguous() if stored.transposed else matrix
