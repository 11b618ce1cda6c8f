"""NVFP4: numbers of 4 bits (e2m1), a scale of 8 bits (e4m3) for each 16 of a row, and a divisor of all scales.

``weight = value * (scale / divisor)`` in float32, rounded to the model's dtype, as compressed-tensors dequantises it
(``NVFP4PackedCompressor``). Nothing is quantised to it here: it keeps what checkpoints have.
"""

from __future__ import annotations

import torch

from coterie.errors import UnsupportedError
from coterie.quant.mxfp4 import E2M1_VALUES
from coterie.quant.rows import row_blocks
from coterie.quant.scheme import Parts, Scheme
from coterie.spec.encodings import NVFP4, SchemeFormat

_PAIRS = (
    torch.tensor([[E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]] for byte in range(256)]).view(torch.int64).view(-1)
)
"""The two numbers in each byte, the lower half first: two float32 as one integer, which is looked up faster."""


class Nvfp4(Scheme):
    """The scheme of :data:`coterie.spec.encodings.NVFP4`."""

    form: SchemeFormat = NVFP4

    def _quantise(self, weights: torch.Tensor) -> Parts:
        raise UnsupportedError(f"Nothing is quantised to {self.name}.", scheme=self.name)

    def _dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """:meth:`dequantise` by torch: the definition of the result."""
        codes, stored = parts
        rows, groups = len(codes), self.form.group_count(columns)
        weights = torch.empty(rows, columns, dtype=dtype)
        for block in row_blocks(rows, columns):
            pairs = torch.index_select(_PAIRS, 0, codes[block].reshape(-1).to(torch.int32))
            values = pairs.view(torch.float32).view(-1, groups, columns // groups)
            weights[block] = values.mul_(_scales(stored[block], groups)[:, :, None]).view(-1, columns)
        return weights


def nvfp4_parts(codes: torch.Tensor, scales_NG: torch.Tensor, divisor: torch.Tensor) -> Parts:
    """The tensors of a weight of a checkpoint as the scheme stores them: nothing is rounded.

    Args:
        codes: uint8 [N, K / 2]: two numbers to a byte, the lower half first.
        scales_NG: float8_e4m3fn [N, K / 16].
        divisor: float32 [1].
    """
    of_rows = divisor.reshape(1, 1).expand(len(codes), 1).contiguous().view(torch.uint8)
    return codes.contiguous(), torch.cat([scales_NG.contiguous().view(torch.uint8), of_rows], dim=1)


def _scales(stored: torch.Tensor, groups: int) -> torch.Tensor:
    """The scales of some rows, float32 [N, G]."""
    scales_NG = stored[:, :groups].contiguous().view(torch.float8_e4m3fn).float()
    # Copied: bytes of a row begin where numbers of this dtype need not.
    return scales_NG / stored[:, groups:].clone(memory_format=torch.contiguous_format).view(torch.float32)
