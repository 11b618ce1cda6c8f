"""FP8 weights with one scale per block, turned into the weights that transformers makes of them on a CPU.

transformers (``Fp8Dequantize``) multiplies in float32 and rounds the product to the dtype of the model. The same bits
come faster from an integer shift than from torch's conversion: the bits of an e4m3 number, moved to their places in a
float16, are that number times 2^-8, subnormal ones included. The scale is multiplied by 2^8 instead; both are exact.
"""

from __future__ import annotations

import torch

_NAN_MASK = 0x7F7F7F7F7F7F7F7F
_NAN_STEP = 0x0101010101010101
_NAN_BITS = -0x7F7F7F7F7F7F7F80  # 0x8080808080808080 as a signed number
_AT_ONCE = 1 << 16
"""Elements that are converted together: their intermediate forms stay in the processor's cache."""


def dequantise_fp8(
    weight_NK: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: tuple[int, int] | None = None
) -> torch.Tensor:
    """Multiplies FP8 weights by the scales of their blocks.

    Args:
        weight_NK: Weights [N, K] in float8_e4m3fn.
        scales: Scales [n, k], of any floating dtype, or exponents plus 127 in uint8; a single one for all weights.
        dtype: Of the result.
        block: Rows and columns of a block. Used where the grid does not divide the weights: the blocks at their edges
            are then smaller. (transformers refuses such weights.)

    Returns:
        Weights [N, K], contiguous.

    Raises:
        ValueError: If the scales fit neither as a grid nor by ``block``.
    """
    if weight_NK.dim() != 2 or scales.dim() > 2 or (scales.dim() < 2 and scales.numel() != 1):
        raise ValueError(f"weights {tuple(weight_NK.shape)} and scales {tuple(scales.shape)} are not matrices")
    rows, columns = weight_NK.shape
    n, k = _grid(tuple(scales.shape))
    scales_nk = _as_float32(scales).reshape(n, k)
    if rows % n == 0 and columns % k == 0:
        return _multiply(weight_NK, scales_nk, rows // n, columns // k, dtype)
    if block is None or (n, k) != (-(-rows // block[0]), -(-columns // block[1])):
        raise ValueError(f"weights of shape ({rows}, {columns}) do not divide into a grid of ({n}, {k}) scales")
    scales_NK = scales_nk.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return _multiply(weight_NK, scales_NK.contiguous(), 1, 1, dtype)


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[-2], shape[-1]) if len(shape) >= 2 else (1, 1)


def _as_float32(scales: torch.Tensor) -> torch.Tensor:
    if scales.dtype == torch.uint8:
        return (scales.to(torch.float32) - 127.0).exp2()
    return scales.to(torch.float32)


def _multiply(
    weight_NK: torch.Tensor, scales_nk: torch.Tensor, block_rows: int, block_columns: int, dtype: torch.dtype
) -> torch.Tensor:
    rows, columns = weight_NK.shape
    result = torch.empty((rows, columns), dtype=dtype)
    fast = _is_ordinary(weight_NK, scales_nk)
    scales_nk1 = (scales_nk * 256 if fast else scales_nk)[:, :, None]
    step = max(1, min(block_rows, _AT_ONCE // max(1, columns)))
    for band in range(rows // block_rows):
        for begin in range(band * block_rows, (band + 1) * block_rows, step):
            end = min(begin + step, (band + 1) * block_rows)
            part = weight_NK[begin:end]
            values = _shifted(part) if fast else part.to(torch.float32)
            values = values.view(end - begin, -1, block_columns).mul_(scales_nk1[band])
            result[begin:end].copy_(values.view(end - begin, columns))
    return result


def _shifted(weight: torch.Tensor) -> torch.Tensor:
    """The weights times 2^-8 in float32."""
    # Sign-extended, the sign is in bits 14 and 15 after the shift: bit 14 must go.
    bits = weight.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4001)
    return bits.view(torch.float16).to(torch.float32)


def _is_ordinary(weight: torch.Tensor, scales: torch.Tensor) -> bool:
    """Whether shifting is exact: no weight is NaN (all bits but the sign set) and no scale overflows times 2^8."""
    if weight.numel() % 8 or not weight.is_contiguous() or weight.storage_offset() % 8:
        return False
    if not bool((scales.abs() < 2.0**100).all()):
        return False
    words = weight.view(-1).view(torch.int64)
    step = _AT_ONCE // 8
    for begin in range(0, words.numel(), step):
        part = words[begin : begin + step]
        if bool((((part & _NAN_MASK) + _NAN_STEP) & _NAN_BITS).any()):
            return False
    return True
