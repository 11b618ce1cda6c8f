"""Sound into a WAV file, chunk by chunk: whatever ends it, what was spoken by then is a whole file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from coterie.files.replacing import replacing

_SAMPLE_NBYTES = 2
_HEADER_NBYTES = 44
_UNKNOWN = 0xFFFFFFFF
"""The length in the header of a stream, as players and ffmpeg understand it."""


class WavWriter:
    """Writes mono 16-bit samples.

    Args:
        file: Where to, from its beginning.
        rate: Samples per second.
    """

    def __init__(self, file: IO[bytes], rate: int) -> None:
        self._file = file
        self._rate = rate
        self._nbytes = 0
        file.write(_header(rate, _UNKNOWN))

    def write(self, samples: npt.NDArray[np.float32]) -> None:
        """Adds samples, float32 [samples]; what is beyond [-1, 1] is clipped."""
        values = pcm16(samples)
        self._file.write(values)
        self._nbytes += len(values)
        self._file.flush()

    def end(self) -> None:
        """Says in the header how long it is, where the file can be gone back in."""
        if self._file.seekable():
            self._file.seek(0)
            self._file.write(_header(self._rate, self._nbytes))


def pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    """Samples, float32 [samples], as 16-bit little-endian integers; what is beyond [-1, 1] is clipped."""
    return (np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def _header(rate: int, nbytes: int) -> bytes:
    whole = nbytes if nbytes == _UNKNOWN else nbytes + _HEADER_NBYTES - 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", whole, b"WAVE",
        b"fmt ", 16, 1, 1, rate, rate * _SAMPLE_NBYTES, _SAMPLE_NBYTES, 8 * _SAMPLE_NBYTES,
        b"data", nbytes,
    )  # fmt: skip


@contextmanager
def wav_file(path: str | Path, rate: int) -> Iterator[WavWriter]:
    """A WAV file that takes the place of what ``path`` names when the block ends, or is left by an error.

    Raises:
        OutputError: If it cannot be written.
    """
    failure: BaseException | None = None
    with replacing(path) as partial, partial.open("wb") as file:
        writer = WavWriter(file, rate)
        try:
            yield writer
        except OSError:
            raise  # most likely of this file, which the error is to name
        except BaseException as error:
            failure = error
        writer.end()
    if failure is not None:
        raise failure
