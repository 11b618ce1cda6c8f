"""MXFP4 experts of gpt-oss, turned into the weights that transformers makes of them on a CPU.

32 values of 4 bits (e2m1) in a row share one exponent. transformers (``convert_moe_packed_tensors``) looks values up,
scales them, and transposes the result. Transposing the packed bytes first gives the same values and moves a quarter of
the memory.
"""

from __future__ import annotations

import torch

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of 4 bits, by their bits."""


def dequantise_mxfp4(blocks_NGB: torch.Tensor, scales_NG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Unpacks one expert's projection.

    Args:
        blocks_NGB: uint8 [N, G, 16]: N rows of G blocks of 16 bytes, the lower half of a byte first.
        scales_NG: uint8 [N, G]: exponents plus 127.
        dtype: Of the result.

    Returns:
        Weights [32·G, N], contiguous: transposed, as gpt-oss keeps them in memory.
    """
    rows, groups, width = blocks_NGB.shape
    values = torch.tensor(E2M1_VALUES, dtype=dtype)
    bytes_GBN = blocks_NGB.reshape(rows, groups * width).t().contiguous().view(groups, width, rows)
    exponents_GN = (scales_NG.to(torch.int32) - 127).t().contiguous()
    # Six times as fast, and the same where the power is a number (2^128 is not) that dtype holds exactly.
    powers_GN = None
    if dtype != torch.float16 and int(exponents_GN.amax()) < 128:
        powers_GN = torch.pow(2.0, exponents_GN).to(dtype)
    result = torch.empty(groups, width, 2, rows, dtype=dtype)
    for group in range(groups):
        packed = bytes_GBN[group]
        for half, nibbles in enumerate((packed & 0x0F, packed >> 4)):
            found = torch.index_select(values, 0, nibbles.to(torch.int32).view(-1)).view(width, rows)
            if powers_GN is None:
                torch.ldexp(found, exponents_GN[group], out=result[group, :, half])
            else:
                torch.mul(found, powers_GN[group], out=result[group, :, half])
    return result.view(groups * width * 2, rows)
