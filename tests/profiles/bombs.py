"""What is small as it is stored, and swells."""

from __future__ import annotations

import functools
import zlib

_MIB = 1 << 20


@functools.cache
def _mebibyte() -> bytes:
    """A mebibyte of zeros in blocks of deflate that refer to nothing before them, with others behind them."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(_MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)


def bomb(nbytes: int) -> bytes:
    """So many zeros in zlib's format, about a thousandth of that in size; put together, as compressing takes long."""
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = last.compress(bytes(nbytes % _MIB)) + last.flush()
    checksum = (nbytes % 65_521 << 16 | 1).to_bytes(4, "big")  # Adler's, of zeros
    return b"\x78\xda" + _mebibyte() * (nbytes // _MIB) + tail + checksum
