"""Schemes of 8 bits: signed bytes with a scale for each group of a row, and a zero where a checkpoint has one.

``weight = stored * scale`` in float32, plus the zero where there is one, rounded to the model's dtype. What is
quantised here has no zero, and ``stored`` is from -127 to 127. Groups rather than rows: an eighth of a bit to a quarter
more per weight, for which the error falls by more than a longer code would give.
"""

from __future__ import annotations

import torch

from coterie.quant.codes import Codes, Grid
from coterie.quant.grouped import GroupedScheme
from coterie.quant.grouping import whole_and_rest
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts
from coterie.spec.encodings import SchemeFormat

_LARGEST = 127


class Int8(GroupedScheme):
    """Signed bytes.

    Args:
        form: Its format.
    """

    def __init__(self, form: SchemeFormat) -> None:
        self.form = form
        self.grid = Grid(lowest=-_LARGEST, highest=_LARGEST, has_zeros=False) if form.made_here else None

    def _quantise(self, weights: torch.Tensor) -> Parts:
        rows, columns = weights.shape
        codes = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows, self.form.group_count(columns), dtype=torch.bfloat16)
        for block in row_blocks(rows, columns):
            x = weights[block].float()
            for first, end, group, size in whole_and_rest(columns, self.form):
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

    def codes_of(self, codes: torch.Tensor, columns: int) -> tuple[torch.Tensor, int]:
        """See :meth:`GroupedScheme.codes_of`."""
        return codes[:, :columns], 0

    def packed_codes(self, codes_NK: torch.Tensor) -> torch.Tensor:
        """See :meth:`GroupedScheme.packed_codes`."""
        return codes_NK

    def unpacked(self, parts: Parts, columns: int) -> Codes:
        """See :meth:`Scheme.unpacked`."""
        if self.grid is None:
            raise self.no_grid()
        codes, scales = parts
        scales_GN = scales.float().t().contiguous()
        codes_KN = codes.float().t().contiguous()
        zeros_GN, size = torch.zeros_like(scales_GN), self.form.group_size(columns)
        return Codes(codes_KN=codes_KN, scales_GN=scales_GN, zeros_GN=zeros_GN, group=size)

    def packed(self, codes: Codes) -> Parts:
        """See :meth:`Scheme.packed`."""
        if self.grid is None:
            raise self.no_grid()
        return codes.codes_KN.to(torch.int8).t().contiguous(), codes.scales_GN.t().bfloat16().contiguous()
