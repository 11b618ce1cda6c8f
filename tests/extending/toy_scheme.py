"""Scheme ``toy``: signed bytes with one scale for each row."""

import torch

from coterie.quant.scheme import Parts, Scheme
from coterie.spec.encodings import SCHEME_FORMATS


class Toy(Scheme):
    """Eight bits per weight and 16 per row."""

    form = SCHEME_FORMATS["toy"]

    def _quantise(self, weights: torch.Tensor) -> Parts:
        scales = (weights.float().abs().amax(1, keepdim=True) / 100).bfloat16()
        return (weights.float() / scales.float()).round().to(torch.int8), scales

    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        codes, scales = parts
        return (codes.float() * scales.float()).to(dtype)
