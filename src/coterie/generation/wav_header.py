"""WAV headers as they are found: cut files are told from whole ones, lengths that writers left open put right."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader

_STREAMED = 2**31 - 2**16
"""Writers that cannot seek back (pipes) put about 2**31 or 2**32 as the length, or 0; such a header claims nothing."""

_LONGEST = 2**32 - 2**16
_MOST_CHUNKS = 4096
_LARGEST_FORMAT = 4096
_KNOWN = (b"data", b"fmt ", b"LIST", b"fact", b"bext", b"JUNK", b"junk", b"cue ", b"id3 ", b"ID3 ")


@dataclass(frozen=True, slots=True, kw_only=True)
class WavSurvey:
    """What a WAV file says of its samples.

    Attributes:
        format: Content of its ``fmt`` chunk; empty if there was none.
        position: Where samples begin.
        claimed: Bytes of samples that it announces; 0 if it announces nothing.
        there: Bytes from there to the end of the file.
        mended: Whether a reader that goes by the letter would not find the samples: a length of zero with samples
            behind it, or a chunk of odd length that no padding follows.
    """

    format: bytes
    position: int
    claimed: int
    there: int
    mended: bool


def survey_wav(file: BufferedReader) -> WavSurvey | None:
    """Looks through a file's chunks up to its samples; None if it is no WAV file, or has none."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        return None
    form, long_length, mended = b"", 0, False
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(8)
        position = file.tell()
        if len(chunk) < 8:
            return None
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            if head[:4] != b"RIFF" and length == 2**32 - 1:
                claimed = long_length
            else:
                claimed = 0 if length >= _STREAMED else length
            open_end = length == 0 and size > position and not _is_chunk(file, position, size)
            return WavSurvey(
                format=form, position=position, claimed=claimed, there=size - position, mended=mended or open_end
            )
        if chunk[:4] == b"fmt ":
            form = file.read(min(length, _LARGEST_FORMAT))
        elif chunk[:4] == b"ds64" and length >= 16:
            long_length = int.from_bytes(file.read(16)[8:], "little")
        end = position + length
        if length % 2 and _is_known(file, end) and not _is_known(file, end + 1):
            mended = True
        else:
            end += length % 2
        file.seek(end)
    return None


def _is_chunk(file: BufferedReader, position: int, size: int) -> bool:
    """Whether a chunk seems to begin here: a name in ASCII, and a length that fits the file, or is open."""
    file.seek(position)
    chunk = file.read(8)
    if len(chunk) < 8 or not all(32 <= byte < 127 for byte in chunk[:4]):
        return False
    length = int.from_bytes(chunk[4:], "little")
    return position + 8 + length <= size or length >= _STREAMED


def _is_known(file: BufferedReader, position: int) -> bool:
    file.seek(position)
    return file.read(4) in _KNOWN


class SoundBytes:
    """A sound file for libsndfile, from a given place on and with other bytes before it.

    Seeking ends at the file's ends: damaged files make libsndfile ask for anything, and an exception cannot pass it.
    """

    def __init__(self, file: BufferedReader, *, head: bytes = b"", start: int = 0, nbytes: int) -> None:
        self._file = file
        self._head = head
        self._start = start
        self._size = len(head) + nbytes
        self._at = 0

    @classmethod
    def of(cls, file: BufferedReader, survey: WavSurvey | None) -> SoundBytes:
        """The file as it is, or with a header by the letter where it has none."""
        if survey is None or not survey.mended or not survey.format:
            return cls(file, nbytes=os.fstat(file.fileno()).st_size)
        length = min(survey.claimed or survey.there, survey.there, _LONGEST)
        body = b"WAVEfmt " + len(survey.format).to_bytes(4, "little") + survey.format + b"\0" * (len(survey.format) % 2)
        head = b"RIFF" + (len(body) + 8 + length).to_bytes(4, "little") + body
        head += b"data" + length.to_bytes(4, "little")
        return cls(file, head=head, start=survey.position, nbytes=length)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """As of files."""
        base = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._size}[whence]
        self._at = min(max(0, base + offset), self._size)
        return self._at

    def tell(self) -> int:
        """As of files."""
        return self._at

    def read(self, count: int = -1) -> bytes:
        """As of files."""
        left = self._size - self._at
        count = left if count < 0 else min(count, left)
        data = self._head[self._at : self._at + count]
        if len(data) < count:
            self._file.seek(self._start + max(0, self._at - len(self._head)))
            data += self._file.read(count - len(data))
        self._at += len(data)
        return data
