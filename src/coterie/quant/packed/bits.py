"""Codes of a few bits in 32-bit words, one after the other, the first one in the lowest bits."""

from __future__ import annotations

import torch

_PERIOD = 32
"""So many codes fill whole words, whatever their bits."""


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes of rows of words.

    Args:
        words: int32 or uint32 [N, W], contiguous or not.
        bits: Bits of a code, 1 to 8. A code may begin in one word and end in the next.

    Returns:
        uint8 [N, 32 W / ``bits``], rounded down.
    """
    octets: torch.Tensor = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        parts: torch.Tensor = (octets[:, :, None] >> shifts) & (2**bits - 1)
        return parts.flatten(1)
    count = octets.shape[1]
    columns = count * 8 // bits
    starts = torch.arange(columns) * bits
    first = starts // 8
    # A code of at most 8 bits lies in two bytes; past the last one is nothing that any code has bits in.
    second = (first + 1).clamp_max(count - 1)
    pairs = octets[:, first].to(torch.int16) | (octets[:, second].to(torch.int16) << 8)
    codes: torch.Tensor = (pairs >> (starts % 8).to(torch.int16)) & (2**bits - 1)
    return codes.to(torch.uint8)
