"""A weight of NVFP4 apart from the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.quant.nvfp4 import Nvfp4, nvfp4_parts
from coterie.quant.scheme import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatBlocks:
    """N rows and K columns of numbers of 4 bits, as they are packed.

    Attributes:
        codes: uint8 [N, K / 2].
        scales_NG: float8_e4m3fn [N, K / 16].
        divisor: float32 [1].
    """

    codes: torch.Tensor
    scales_NG: torch.Tensor
    divisor: torch.Tensor

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [N, K], computed in float32 and rounded once to ``dtype``."""
        return Nvfp4().dequantise(self.parts(), 2 * self.codes.shape[1], dtype)

    def parts(self) -> Parts:
        """Codes and scales as the scheme has them."""
        return nvfp4_parts(self.codes, self.scales_NG, self.divisor)
