"""Reading sounds into mono float32 at the rate that a feature extractor wants, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coterie.errors import InputError
from coterie.files.regular import regular_file
from coterie.generation.containers import Container, container_format, open_container
from coterie.generation.wav_header import SoundBytes, survey_wav
from coterie.spec import format_bytes

if TYPE_CHECKING:
    import soundfile

Samples = npt.NDArray[np.float32]

_CONVERT = "Convert it, for example with: ffmpeg -i INPUT -ac 1 -c:a pcm_s16le OUTPUT.wav"
_BLOCK_VALUES = 1 << 18
"""Samples of all channels that are decoded at a time."""

_RATES = range(100, 6_144_001)
_MOST_CHANNELS = 1024
_UNKNOWN = 2**62
"""So many samples are announced by a file that does not know."""

_MISSABLE = 4608
"""Samples that a lossy format may announce beyond those that it has: its length is an estimate in some files."""

_SAMPLE_NBYTES = 8
"""Bytes of a finished sample: while the blocks are joined, it is there twice."""


def read_sound(path: str | Path, *, rate: int, max_seconds: float | None = None, room: int | None = None) -> Samples:
    """Reads a sound file.

    Args:
        path: WAV in any of its forms (8 to 32 bits, floats, RF64), FLAC, Ogg, MP3, AIFF and what else libsndfile reads;
            with PyAV also M4A, AAC, WebM and the sound of videos. Any number of channels (averaged) and any sampling
            rate.
        rate: Samples per second wanted; if its own rate differs, the sound is resampled by soxr (its quality ``HQ``:
            nothing that is heard below the lower of the two rates' halves is lost, nor folded in from above).
        max_seconds: Longest sound that is accepted.
        room: Bytes that the samples may take; None for no limit.

    Returns:
        float32 [samples], not empty; in [-1, 1] if the file holds no larger floats.

    Raises:
        InputError: If there is no such file, it is not a sound that can be read, it is truncated, empty, too long, or
            has samples that are no numbers. Fact ``path``.
    """
    path = Path(path)
    limits = _Limits(path, rate, max_seconds, room)
    try:
        with regular_file(path) as file:
            if container_format(file.read(512)) in (None, "ogg"):
                return _read(path, file, rate, limits)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"There is no sound file {path}.", path=path) from error
    except OSError as error:
        raise InputError(f"The sound {path} cannot be read: {error.strerror or error}.", path=path) from error
    except MemoryError as error:
        raise InputError(f"The sound {path} takes more memory than there is.", path=path) from error
    with open_container(path, what="The sound", room=room) as container:
        if not container.sound:
            raise InputError(f"{path} has no sound.", path=path)
        return _not_empty(path, _from_container(container, rate, limits))


def sound_of(container: Container, *, rate: int, max_seconds: float | None = None, room: int | None = None) -> Samples:
    """The sound of an open file, as :func:`read_sound` has it; empty if there is none in it."""
    return _from_container(container, rate, _Limits(container.path, rate, max_seconds, room))


def _from_container(container: Container, rate: int, limits: _Limits) -> Samples:
    path, own_rate, first = container.path, 0, []
    blocks = container.samples()
    for own_rate, block in blocks:
        if own_rate not in _RATES:
            raise InputError(f"The sound {path} is at {own_rate} Hz, which is not supported.", path=path)
        first = [(own_rate, block)]
        break

    if not first:
        return np.zeros(0, np.float32)
    mono = (block for _, block in chain(first, blocks))
    return _joined(limits.checked(mono, own_rate), own_rate, rate)


class _Limits:
    """What a sound may be, told while it is read: what a header says of its length may be anything."""

    def __init__(self, path: Path, rate: int, max_seconds: float | None, room: int | None) -> None:
        self._path = path
        self._rate = rate
        self._max_seconds = max_seconds
        self._room = room

    def checked(self, blocks: Iterator[Samples], own_rate: int) -> Iterator[Samples]:
        """The same blocks of mono samples, as long as they are numbers and together not too long."""
        done = 0
        for block in blocks:
            done += len(block)
            self.check(done / own_rate)
            if not np.isfinite(block).all():
                path = self._path
                raise InputError(f"The sound {path} has samples that are no numbers.", advice=_CONVERT, path=path)
            yield block

    def check(self, seconds: float) -> None:
        if self._max_seconds is not None and seconds > self._max_seconds:
            raise InputError(
                f"The sound {self._path} is {seconds:.1f} s long; this model takes {self._max_seconds:.1f} s at most.",
                advice="Cut it into shorter pieces.",
                path=self._path,
                seconds=seconds,
                max_seconds=self._max_seconds,
            )
        needed = int(seconds * self._rate * _SAMPLE_NBYTES)
        if self._room is not None and needed > self._room:
            raise InputError(
                f"The sound {self._path} is {seconds:.1f} s long, which take {format_bytes(needed)}; the memory budget "
                f"leaves {format_bytes(max(0, self._room))}.",
                advice="Cut it into shorter pieces, or raise the budget.",
                path=self._path,
                needed=needed,
                room=self._room,
            )


def _read(path: Path, file: BufferedReader, rate: int, limits: _Limits) -> Samples:
    soundfile = _library(path)
    try:
        with soundfile.SoundFile(_surveyed(path, file)) as sound:
            _check(path, sound)
            if sound.frames < _UNKNOWN:
                limits.check(sound.frames / sound.samplerate)
            samples = _joined(limits.checked(_mono(path, sound), sound.samplerate), sound.samplerate, rate)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        raise InputError(f"{path} is not a sound that can be read: {reason}.", advice=_CONVERT, path=path) from error
    return _not_empty(path, samples)


def _not_empty(path: Path, samples: Samples) -> Samples:
    if not len(samples):
        raise InputError(f"The sound {path} is empty.", path=path)
    return samples


def _library(path: Path) -> Any:
    try:
        import soundfile
    except OSError as error:  # its wheel for this platform has no libsndfile
        raise InputError(
            f"The sound {path} cannot be read: {error}.", advice="Install libsndfile with the system.", path=path
        ) from error
    return soundfile


def _surveyed(path: Path, file: BufferedReader) -> SoundBytes:
    """The file to read, put right where that is needed. Of a WAV file that was cut, libsndfile says nothing."""
    survey = survey_wav(file)
    if survey is not None and survey.claimed > survey.there:
        raise InputError(
            f"The sound {path} is truncated: its header announces {survey.claimed} bytes of samples, "
            f"{survey.there} are there.",
            path=path,
        )
    return SoundBytes.of(file, survey)


def _check(path: Path, sound: soundfile.SoundFile) -> None:
    if sound.samplerate not in _RATES or not 1 <= sound.channels <= _MOST_CHANNELS:
        raise InputError(
            f"The sound {path} has {sound.channels} channels at {sound.samplerate} Hz, which is not supported.",
            advice=_CONVERT,
            path=path,
        )


def _mono(path: Path, sound: soundfile.SoundFile) -> Iterator[Samples]:
    frames, done = max(1, _BLOCK_VALUES // sound.channels), 0
    while len(block := sound.read(frames, dtype="float32", always_2d=True)):
        done += len(block)
        yield block.mean(axis=1, dtype=np.float32)
    if sound.frames < _UNKNOWN and done + _MISSABLE < 0.9 * sound.frames:
        raise InputError(
            f"The sound {path} is truncated: it announces {sound.frames} samples, {done} are there.", path=path
        )


def _joined(blocks: Iterator[Samples], own_rate: int, rate: int) -> Samples:
    """All of a sound at the rate that is wanted; empty if there are no blocks."""
    made = list(_resampled(blocks, own_rate, rate))
    return np.concatenate(made) if made else np.zeros(0, np.float32)


def _resampled(blocks: Iterator[Samples], own_rate: int, rate: int) -> Iterator[Samples]:
    if own_rate == rate:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(own_rate, rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
