"""A quantised weight apart from how it is packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.quant.rows import row_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """The codes of N rows and K columns, with what each of the G equal groups of a row has.

    A weight is ``(code - point) * scale``, or ``code * scale + bias`` where there are biases.

    Attributes:
        bits: Bits of a code.
        codes_NK: uint8, from 0.
        scales_NG: In the checkpoint's own dtype.
        points_NG: uint8, the codes that stand for 0; None for the middle of the range.
        biases_NG: In the dtype of the scales; None where there are none.
    """

    bits: int
    codes_NK: torch.Tensor
    scales_NG: torch.Tensor
    points_NG: torch.Tensor | None = None
    biases_NG: torch.Tensor | None = None

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [N, K], computed in float32 and rounded once to ``dtype``."""
        rows, columns = self.codes_NK.shape
        groups = self.scales_NG.shape[1]
        result = torch.empty(rows, columns, dtype=dtype)
        middle = 1 << (self.bits - 1)
        for block in row_blocks(rows, columns):
            codes = self.codes_NK[block].float().view(-1, groups, columns // groups)
            scales = self.scales_NG[block].float()[:, :, None]
            if self.biases_NG is not None:
                values = codes.mul_(scales).add_(self.biases_NG[block].float()[:, :, None])
            elif self.points_NG is not None:
                values = codes.sub_(self.points_NG[block].float()[:, :, None]).mul_(scales)
            else:
                values = codes.sub_(middle).mul_(scales)
            result[block] = values.view(-1, columns).to(dtype)
        return result
