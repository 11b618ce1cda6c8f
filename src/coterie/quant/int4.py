"""Scheme ``int4``: four-bit codes, two to a byte, with a bfloat16 scale and zero for each group of a row.

Codes are stored plus 8, so from 0 to 15; byte j of a row holds column 2j in its lower half and column 2j + 1 in its
upper half (zero if the row has an odd length). ``weight = (stored - 8) * scale + zero`` in float32, rounded to the
model's dtype. Everything of a row lies together, whatever the instruction set that computes with it.
"""

from __future__ import annotations

import torch

from coterie.quant.affine import HIGHEST, LOWEST, quantise_groups
from coterie.quant.codes import Codes, Grid
from coterie.quant.grouping import whole_and_rest
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts, Scheme
from coterie.spec.encodings import SCHEME_FORMATS, group_count, group_size

_ZERO_CODE = 8


class Int4(Scheme):
    """4.5 bits per weight in groups of 64."""

    form = SCHEME_FORMATS["int4"]
    grid = Grid(lowest=LOWEST, highest=HIGHEST, has_zeros=True)

    def _quantise(self, weights: torch.Tensor) -> Parts:
        rows, columns = weights.shape
        packed = torch.empty(rows, -(-columns // 2), dtype=torch.uint8)
        scales = torch.empty(rows, group_count(columns), 2, dtype=torch.bfloat16)
        for block in row_blocks(rows, columns):
            x = weights[block].float()
            codes = torch.empty(x.shape, dtype=torch.uint8)
            for first, end, group, size in whole_and_rest(columns):
                grouped = x[:, first:end].reshape(len(x), -1, size)
                found = quantise_groups(grouped.permute(2, 1, 0).reshape(size, -1))
                shape = (size, grouped.shape[1], len(x))
                stored = (found.codes + _ZERO_CODE).to(torch.uint8).view(shape)
                codes[:, first:end] = stored.permute(2, 1, 0).reshape(len(x), -1)
                pairs = torch.stack([found.scales, found.zeros], dim=-1).view(shape[1], len(x), 2)
                scales[block, group : group + shape[1]] = pairs.transpose(0, 1)
            packed[block] = pack(codes)
        return packed, scales

    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        packed, scales = parts
        rows = len(packed)
        weights = torch.empty(rows, columns, dtype=dtype)
        size = group_size(columns)
        for block in row_blocks(rows, columns):
            codes = unpack(packed[block], columns).float() - _ZERO_CODE
            pairs = scales[block].float().repeat_interleave(size, dim=1)[:, :columns]
            weights[block] = (codes * pairs[..., 0] + pairs[..., 1]).to(dtype)
        return weights

    def unpacked(self, parts: Parts, columns: int) -> Codes:
        """See :meth:`Scheme.unpacked`."""
        packed, scales = parts
        scales_GN, zeros_GN = scales.float().permute(2, 1, 0).contiguous()
        codes_KN = (unpack(packed, columns).float() - _ZERO_CODE).t().contiguous()
        return Codes(codes_KN=codes_KN, scales_GN=scales_GN, zeros_GN=zeros_GN)

    def packed(self, codes: Codes) -> Parts:
        """See :meth:`Scheme.packed`."""
        stored = (codes.codes_KN + _ZERO_CODE).to(torch.uint8).t()
        pairs = torch.stack([codes.scales_GN.t(), codes.zeros_GN.t()], dim=-1)
        return pack(stored).contiguous(), pairs.bfloat16().contiguous()


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Packs stored codes, uint8 [N, K] from 0 to 15, into uint8 [N, ⌈K / 2⌉]."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The stored codes, uint8 [N, ``columns``]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :columns]
