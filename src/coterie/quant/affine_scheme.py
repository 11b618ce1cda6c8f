"""Schemes of 2 to 6 bits: codes in planes, with a scale for each group of a row, and a zero or a zero point.

Codes are stored plus half their range, so that they are from 0 on, in the planes of :mod:`coterie.quant.planes`. With
zeros, ``weight = (stored - 2**(bits - 1)) * scale + zero`` in float32, rounded to the model's dtype; with zero points,
``(stored - point) * scale``; with neither, ``(stored - 2**(bits - 1)) * scale``. Everything of a row lies together,
whatever the instruction set that computes with it.
"""

from __future__ import annotations

import torch

from coterie.quant.affine import code_range, quantise_groups
from coterie.quant.codes import Codes, Grid
from coterie.quant.grouped import GroupedScheme
from coterie.quant.grouping import whole_and_rest
from coterie.quant.planes import pack, unpack
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts
from coterie.spec.encodings import SchemeFormat


class AffineScheme(GroupedScheme):
    """Codes of a few bits.

    Args:
        form: Its format.
    """

    def __init__(self, form: SchemeFormat) -> None:
        self.form = form
        lowest, highest = code_range(form.code_bits)
        # Codes are chosen by calibration where scales and zeros are: in what weights are quantised to.
        self.grid = Grid(lowest=lowest, highest=highest, has_zeros=True) if form.made_here else None

    @property
    def zero_code(self) -> int:
        """What is stored of the code 0."""
        return 1 << (self.form.code_bits - 1)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Stored codes, uint8 [N, K], as the bytes of the format."""
        return pack(codes, self.form.code_bits, self.form.filled_to)

    def unpack(self, packed: torch.Tensor, columns: int) -> torch.Tensor:
        """The stored codes, uint8 [N, ``columns``]."""
        return unpack(packed, self.form.code_bits, columns)

    def _quantise(self, weights: torch.Tensor) -> Parts:
        rows, columns = weights.shape
        (_, shape), _ = self.form.parts(rows, columns)
        packed = torch.empty(shape, dtype=torch.uint8)
        scales = torch.empty(rows, self.form.group_count(columns), 2, dtype=torch.bfloat16)
        for block in row_blocks(rows, columns):
            x = weights[block].float()
            codes = torch.empty(x.shape, dtype=torch.uint8)
            for first, end, group, size in whole_and_rest(columns, self.form):
                grouped = x[:, first:end].reshape(len(x), -1, size)
                found = quantise_groups(grouped.permute(2, 1, 0).reshape(size, -1), self.form.code_bits)
                shape = (size, grouped.shape[1], len(x))
                stored = (found.codes + self.zero_code).to(torch.uint8).view(shape)
                codes[:, first:end] = stored.permute(2, 1, 0).reshape(len(x), -1)
                pairs = torch.stack([found.scales, found.zeros], dim=-1).view(shape[1], len(x), 2)
                scales[block, group : group + shape[1]] = pairs.transpose(0, 1)
            packed[block] = self.pack(codes)
        return packed, scales

    def codes_of(self, codes: torch.Tensor, columns: int) -> tuple[torch.Tensor, int]:
        """See :meth:`GroupedScheme.codes_of`."""
        return self.unpack(codes, columns), self.zero_code

    def packed_codes(self, codes_NK: torch.Tensor) -> torch.Tensor:
        """See :meth:`GroupedScheme.packed_codes`."""
        return self.pack(codes_NK)

    def unpacked(self, parts: Parts, columns: int) -> Codes:
        """See :meth:`Scheme.unpacked`."""
        if self.grid is None:
            raise self.no_grid()
        packed, scales = parts
        scales_GN, zeros_GN = scales.float().permute(2, 1, 0).contiguous()
        codes_KN = (self.unpack(packed, columns).float() - self.zero_code).t().contiguous()
        size = self.form.group_size(columns)
        return Codes(codes_KN=codes_KN, scales_GN=scales_GN, zeros_GN=zeros_GN, group=size)

    def packed(self, codes: Codes) -> Parts:
        """See :meth:`Scheme.packed`."""
        if self.grid is None:
            raise self.no_grid()
        stored = (codes.codes_KN + self.zero_code).to(torch.uint8).t()
        pairs = torch.stack([codes.scales_GN.t(), codes.zeros_GN.t()], dim=-1)
        return self.pack(stored).contiguous(), pairs.bfloat16().contiguous()
