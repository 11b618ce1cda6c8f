"""Activations times a quantised matrix as it is stored."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from coterie.errors import UsageError
from coterie.native.library import Library
from coterie.native.schemes import PART_DTYPES, SCHEME_CODES, knows
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS


def rows_served(library: Library, scheme: str, columns: int) -> bool:
    """Whether the library computes with rows of so many weights in a scheme, one of ``SCHEME_CODES``."""
    # Every group that divides a row is a multiple of 32, and whoever has none that does has no whole groups.
    if columns < 1 or columns % 32:
        return False
    return bool(columns <= library.functions.coterie_most_columns(SCHEME_CODES[scheme], library.level))


class PlacedMatrix(ctypes.Structure):
    """``layer_matrix`` of ``layer.h``: what :attr:`PackedMatrix.place` says, in its order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("scheme", "rows", "columns")),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class PackedMatrix:
    """A quantised matrix [N, K], its fields used where they lie.

    Args:
        library: The library.
        scheme: Name of the scheme.
        codes: Of the scheme's dtype and shape: uint8 [N, K · bits / 8], or int8 [N, K].
        scales: Likewise, such as bfloat16 [N, K / group, 2].

    Attributes:
        shape: (N, K).
        least_rows: Rows of activations from which on the weights are decoded to bfloat16 and multiplied as a matrix,
            at the speed of arithmetic; fewer are multiplied with the codes, at the speed of memory.

    Raises:
        UsageError: If the tensors do not make such a matrix, or the library does not serve it (see :meth:`served`).
    """

    def __init__(self, library: Library, scheme: str, codes: torch.Tensor, scales: torch.Tensor) -> None:
        if codes.dim() != 2:
            raise UsageError(f"Codes must be a matrix, not {list(codes.shape)}.", got=list(codes.shape))
        columns = SCHEME_FORMATS[scheme].values(codes.shape[1]) if knows(scheme) else codes.shape[1]
        if not self.served(library, scheme, columns):
            raise UsageError(f"Rows of {columns} weights in scheme {scheme!r} are not served.", columns=columns)
        self.shape = (codes.shape[0], columns)
        check_fields(scheme, self.shape, (codes, scales))
        self._library = library
        self._fields = (codes, scales)
        self._scheme = SCHEME_CODES[scheme]
        self.least_rows = int(library.functions.coterie_gemm_least_rows(library.level))

    @staticmethod
    def served(library: Library, scheme: str, columns: int) -> bool:
        """Whether the library computes with rows of so many weights."""
        return knows(scheme) and rows_served(library, scheme, columns)

    @property
    def place(self) -> tuple[int, int, int, int, int]:
        """The scheme's number, N, K, and where codes and scales lie."""
        codes, scales = self._fields
        return (self._scheme, *self.shape, codes.data_ptr(), scales.data_ptr())

    def __call__(self, x_MK: torch.Tensor, *, rows: bool = False) -> torch.Tensor:
        """The product with each row of ``x``, bfloat16 [M, N].

        Args:
            x_MK: bfloat16 [M, K].
            rows: Whether each row is to have the bits that it has alone, whatever their number.

        Raises:
            UsageError: If ``x`` is something else.
        """
        outputs, columns = self.shape
        if x_MK.dtype != torch.bfloat16 or x_MK.dim() != 2 or x_MK.shape[1] != columns or x_MK.device.type != "cpu":
            got = f"{x_MK.dtype} {list(x_MK.shape)} on {x_MK.device}"
            raise UsageError(f"Activations must be bfloat16 [M, {columns}] in memory, not {got}.", got=got)
        x_MK = x_MK.contiguous()
        out_MN = torch.empty(x_MK.shape[0], outputs, dtype=torch.bfloat16, device="cpu")
        codes, scales = self._fields
        library, tokens, threads = self._library, x_MK.shape[0], self._library.threads
        functions, way = library.functions, (self._scheme, library.level, threads)
        fields = (x_MK.data_ptr(), codes.data_ptr(), scales.data_ptr())
        shape = (tokens, outputs, columns)
        if rows or tokens < self.least_rows:
            functions.coterie_matmul(*way, *fields, *shape, out_MN.data_ptr())
        else:
            scratch = torch.empty(functions.coterie_gemm_bytes(*way, tokens, columns), dtype=torch.uint8, device="cpu")
            functions.coterie_gemm_matmul(*way, *fields, *shape, out_MN.data_ptr(), scratch.data_ptr())
        return out_MN


def check_fields(scheme: str, shape: tuple[int, int], fields: Sequence[torch.Tensor]) -> None:
    """Makes sure that tensors are the fields of a matrix, as the C code takes them for granted.

    Args:
        scheme: One of ``SCHEME_CODES``.
        shape: [N, K].
        fields: Codes and scales; of what is native the matrix alone.

    Raises:
        UsageError: If not.
    """
    wanted = (("BF16", shape),) if scheme == NATIVE else SCHEME_FORMATS[scheme].parts(*shape)
    if len(fields) != len(wanted):
        raise UsageError(f"A matrix in scheme {scheme!r} has {len(wanted)} fields, not {len(fields)}.", got=len(fields))
    for name, tensor, (stored, size) in zip(("codes", "scales"), fields, wanted, strict=False):
        dtype = PART_DTYPES[stored]
        if tensor.dtype != dtype or tuple(tensor.shape) != size or not tensor.is_contiguous():
            got = f"{tensor.dtype} {list(tensor.shape)}, strides {list(tensor.stride())}"
            raise UsageError(f"The {name} of {scheme} must be contiguous {dtype} {list(size)}, not {got}.", got=got)
        if tensor.device.type != "cpu":
            raise UsageError(f"The {name} must lie in memory, not on {tensor.device}.", got=str(tensor.device))
