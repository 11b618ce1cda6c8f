"""Reading a run of bytes in order, whole or in pieces, and leaving nothing of it in the page cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from coterie.spec import ByteSource, OpenBytes

_AT_ONCE = 64 << 20
_PIECE = 4 << 20
_AHEAD = 4 * _PIECE


def read_range(source: ByteSource, offset: int, buffer: memoryview) -> int:
    """Fills a buffer with the bytes from an offset on, up to the end of the file; returns how many there were.

    Raises:
        OSError: If they cannot be read, or are not what they were when they were located.
    """
    done = 0
    with closing(source.open("in order")) as file:
        while done < len(buffer):
            count = file.read_at(buffer[done : done + _AT_ONCE], offset + done)
            if not count:
                break
            file.drop(offset + done, count)
            done += count
    return done


def piece_buffer(nbytes: int) -> memoryview:
    """Memory for the pieces of ranges of so many bytes at the most."""
    return memoryview(bytearray(min(_PIECE, nbytes)))


def pieces_of(source: ByteSource, offset: int, nbytes: int) -> Iterator[memoryview]:
    """The bytes from an offset on in pieces, up to the end of the file; each is valid until the next one is asked for.

    Raises:
        OSError: As :func:`read_range`.
    """
    with closing(source.open("in order")) as file:
        yield from pieces(file, offset, nbytes)


def pieces(file: OpenBytes, offset: int, nbytes: int, buffer: memoryview | None = None) -> Iterator[memoryview]:
    """As :func:`pieces_of`, of what is open already.

    Args:
        file: Read from.
        offset: Where to begin.
        nbytes: How many bytes.
        buffer: Memory for a piece, for callers that read many ranges: see :func:`piece_buffer`.
    """
    buffer = piece_buffer(nbytes) if buffer is None else buffer
    end = offset + nbytes
    while offset < end:
        ahead = offset + len(buffer)
        if ahead < end:
            file.will_read(ahead, min(_AHEAD, end - ahead))
        count = file.read_at(buffer[: min(len(buffer), end - offset)], offset)
        if not count:
            return
        yield buffer[:count]
        file.drop(offset, count)
        offset += count
