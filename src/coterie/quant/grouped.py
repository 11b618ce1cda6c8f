"""What schemes have in common whose groups of weights share a scale."""

from __future__ import annotations

from abc import abstractmethod

import torch

from coterie import native
from coterie.errors import UsageError
from coterie.quant.numbers import read_numbers, store_numbers
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts, Scheme


class GroupedScheme(Scheme):
    """Codes of whole rows, and numbers for each group of a row."""

    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """:meth:`dequantise` by torch: the definition of the result."""
        codes, scales = parts
        weights = torch.empty(len(codes), columns, dtype=dtype)
        groups, size = self.form.group_count(columns), self.form.group_size(columns)

        def spread(of_groups_NG: torch.Tensor) -> torch.Tensor:
            return of_groups_NG.repeat_interleave(size, dim=1)[:, :columns]

        for block in row_blocks(len(codes), columns):
            numbers = read_numbers(self.form, scales[block], groups)
            stored, zero_code = self.codes_of(codes[block], columns)
            point = zero_code if numbers.points_NG is None else spread(numbers.points_NG)
            found = (stored.float() - point) * spread(numbers.scales_NG)
            weights[block] = (found if numbers.zeros_NG is None else found + spread(numbers.zeros_NG)).to(dtype)
        return weights

    @abstractmethod
    def codes_of(self, codes: torch.Tensor, columns: int) -> tuple[torch.Tensor, int]:
        """The stored codes of some rows as whole numbers [N, ``columns``], and the one that stands for 0."""

    @abstractmethod
    def packed_codes(self, codes_NK: torch.Tensor) -> torch.Tensor:
        """Stored codes, one to an element, as :attr:`form` has them; the way back of :meth:`codes_of`."""

    def assemble(self, codes_NK: torch.Tensor, scales_NG: torch.Tensor, others_NG: torch.Tensor | None = None) -> Parts:
        """Codes and numbers that a quantised checkpoint has, as this scheme stores them: nothing is rounded.

        Args:
            codes_NK: The stored codes: uint8 from 0 to ``2**bits - 1``, int8 in schemes of 8 bits.
            scales_NG: Scales of the scheme's dtype, one for each group of a row.
            others_NG: Zeros of the same dtype, or zero points, uint8 from 0 to 15, by what the scheme has; else None.

        Raises:
            UsageError: If they are not what the scheme has.
        """
        wanted = native.PART_DTYPES[self.form.code_dtype]
        if codes_NK.dim() != 2 or codes_NK.dtype != wanted:
            got = f"{codes_NK.dtype} {list(codes_NK.shape)}"
            raise UsageError(f"The codes of {self.name} must be a matrix of {wanted}, not {got}.", got=got)
        if wanted == torch.uint8 and codes_NK.numel() and int(codes_NK.max()) >> self.form.code_bits:
            most = 2**self.form.code_bits - 1
            raise UsageError(f"Codes of {self.name} are from 0 to {most}, not {int(codes_NK.max())}.", limit=most)
        return self._assembled(self.packed_codes(codes_NK), codes_NK.shape[1], scales_NG, others_NG)

    def assemble_packed(
        self, codes: torch.Tensor, columns: int, scales_NG: torch.Tensor, others_NG: torch.Tensor | None = None
    ) -> Parts:
        """The same of codes that are packed already as this scheme has them.

        Args:
            codes: As :attr:`form` has them.
            columns: Weights of a row.
            scales_NG: See :meth:`assemble`.
            others_NG: Likewise.

        Raises:
            UsageError: If they are not what the scheme has.
        """
        return self._assembled(codes, columns, scales_NG, others_NG)

    def _assembled(
        self, codes: torch.Tensor, columns: int, scales_NG: torch.Tensor, others_NG: torch.Tensor | None
    ) -> Parts:
        groups = self.form.group_count(columns)
        if scales_NG.shape != (len(codes), groups):
            got, wanted = list(scales_NG.shape), [len(codes), groups]
            raise UsageError(f"The scales of {self.name} must be {wanted}, not {got}.", got=got, expected=wanted)
        parts = codes.contiguous(), store_numbers(self.form, scales_NG, others_NG)
        if not self.is_plain(parts, columns):
            found = f"{codes.dtype} {list(codes.shape)}"
            raise UsageError(f"{found} are no codes of {self.name} in rows of {columns} weights.", got=found)
        return parts
