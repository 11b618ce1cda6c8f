"""Lossy schemes: matrices in fewer bits and back, in plain PyTorch; no files. Formats are in docs/format.md."""

from coterie.quant.linears import ALIGNMENT, linear_names, stored_linear
from coterie.quant.parameters import FoundMatrix, StoredMatrix, dequantised_nbytes, find_matrices
from coterie.quant.registry import NATIVE, SCHEMES, lossy_scheme
from coterie.quant.scheme import Scheme

__all__ = [
    "ALIGNMENT",
    "NATIVE",
    "SCHEMES",
    "FoundMatrix",
    "Scheme",
    "StoredMatrix",
    "dequantised_nbytes",
    "find_matrices",
    "linear_names",
    "lossy_scheme",
    "stored_linear",
]
