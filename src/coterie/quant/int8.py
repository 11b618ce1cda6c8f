"""Scheme ``int8``: signed bytes with a bfloat16 scale for each group of a row, symmetric.

``weight = stored * scale`` in float32, rounded to the model's dtype; ``stored`` is from -127 to 127. Groups rather than
rows: an eighth of a bit to a quarter more per weight, for which the error falls by more than a longer code would give.
"""

from __future__ import annotations

import torch

from coterie.quant.codes import Codes, Grid
from coterie.quant.grouping import whole_and_rest
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts, Scheme
from coterie.spec.encodings import SCHEME_FORMATS, group_count, group_size

_LARGEST = 127


class Int8(Scheme):
    """8.25 bits per weight in groups of 64."""

    form = SCHEME_FORMATS["int8"]
    grid = Grid(lowest=-_LARGEST, highest=_LARGEST, has_zeros=False)

    def _quantise(self, weights: torch.Tensor) -> Parts:
        rows, columns = weights.shape
        codes = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows, group_count(columns), dtype=torch.bfloat16)
        for block in row_blocks(rows, columns):
            x = weights[block].float()
            for first, end, group, size in whole_and_rest(columns):
                grouped = x[:, first:end].reshape(len(x), -1, size)
                # A scale rounded down makes the largest weight of a group a little larger than 127 steps: at most half
                # a step is lost by the clamp, as by rounding.
                scale = (grouped.abs().amax(-1) / _LARGEST).bfloat16()
                step = scale.float().unsqueeze(-1)
                divisor = torch.where(step > 0, step, torch.ones_like(step))
                found = (grouped / divisor).round().clamp(-_LARGEST, _LARGEST)
                codes[block, first:end] = torch.where(step > 0, found, 0).reshape(len(x), -1).to(torch.int8)
                scales[block, group : group + grouped.shape[1]] = scale
        return codes, scales

    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        codes, scales = parts
        weights = torch.empty(len(codes), columns, dtype=dtype)
        size = group_size(columns)
        for block in row_blocks(len(codes), columns):
            steps = scales[block].float().repeat_interleave(size, dim=1)[:, :columns]
            weights[block] = (codes[block].float() * steps).to(dtype)
        return weights

    def unpacked(self, parts: Parts, columns: int) -> Codes:
        """See :meth:`Scheme.unpacked`."""
        codes, scales = parts
        scales_GN = scales.float().t().contiguous()
        codes_KN = codes.float().t().contiguous()
        return Codes(codes_KN=codes_KN, scales_GN=scales_GN, zeros_GN=torch.zeros_like(scales_GN))

    def packed(self, codes: Codes) -> Parts:
        """See :meth:`Scheme.packed`."""
        return codes.codes_KN.to(torch.int8).t().contiguous(), codes.scales_GN.t().bfloat16().contiguous()
