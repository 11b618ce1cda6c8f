"""Codes of a few bits in bytes: as planes of 4, 2 and 1 bits, of which each unpacks by shifts and masks alone.

A code of b bits is split by the powers of two that add up to b, the largest first: 3 is a plane of its lower 2 bits and
one of its upper bit, 6 one of its lower 4 bits and one of its upper 2. A row has its planes one after the other. In a
plane of w bits, byte j holds columns 8j/w to 8j/w + 8/w - 1, the first one in its lowest bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad


def planes_of(bits: int) -> Iterator[tuple[int, int]]:
    """Width and lowest bit of each plane of codes of so many bits, 1 to 7, in order."""
    lowest = 0
    for width in (4, 2, 1):
        if bits & width:
            yield width, lowest
            lowest += width


def pack(codes: torch.Tensor, bits: int, filled_to: int) -> torch.Tensor:
    """Packs codes.

    Args:
        codes: uint8 [N, K], below ``2**bits``.
        bits: Bits of a code.
        filled_to: A row is filled with zeros to a multiple of so many columns, which fill whole bytes in every plane.

    Returns:
        uint8 [N, ``bits`` / 8 of the columns].
    """
    codes = pad(codes, (0, -codes.shape[1] % filled_to))
    planes = []
    for width, lowest in planes_of(bits):
        per_byte = 8 // width
        part = (codes >> lowest) & (2**width - 1)
        shifts = torch.arange(0, 8, width, dtype=torch.uint8)
        planes.append((part.unflatten(1, (-1, per_byte)) << shifts).sum(-1, dtype=torch.uint8))
    return torch.cat(planes, dim=1)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The codes, uint8 [N, ``columns``]."""
    filled = packed.shape[1] * 8 // bits
    codes = torch.zeros(len(packed), filled, dtype=torch.uint8)
    begin = 0
    for width, lowest in planes_of(bits):
        end = begin + filled * width // 8
        shifts = torch.arange(0, 8, width, dtype=torch.uint8)
        part = (packed[:, begin:end, None] >> shifts) & (2**width - 1)
        codes |= part.flatten(1) << lowest
        begin = end
    return codes[:, :columns]
