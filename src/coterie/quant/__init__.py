"""Encodings: matrices in fewer bits and back, in plain PyTorch; no files. Formats are in docs/format.md."""

from coterie.quant.dequantising import dequantise
from coterie.quant.fp8 import dequantise_fp8
from coterie.quant.linears import ALIGNMENT, linear_names, stored_linear
from coterie.quant.matrices import StoredMatrix
from coterie.quant.mxfp4 import dequantise_mxfp4
from coterie.quant.registry import GROUPED_SCHEMES, SCHEMES, lossy_scheme
from coterie.quant.scheme import Scheme

__all__ = [
    "ALIGNMENT",
    "GROUPED_SCHEMES",
    "SCHEMES",
    "Scheme",
    "StoredMatrix",
    "dequantise",
    "dequantise_fp8",
    "dequantise_mxfp4",
    "linear_names",
    "lossy_scheme",
    "stored_linear",
]
