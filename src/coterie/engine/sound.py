"""Reading sounds: WAV files into mono float32 at the rate that a feature extractor wants."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from coterie.errors import InputError

_CONVERT = "Convert it, for example with: ffmpeg -i INPUT -ac 1 -c:a pcm_s16le OUTPUT.wav"
_STREAMED = 2**31 - 2**16
"""Writers that cannot seek back (pipes) put about 2**31 or 2**32 as the length; such a header claims nothing."""


def read_sound(path: str | Path, *, rate: int, max_seconds: float | None = None) -> npt.NDArray[np.float32]:
    """Reads a WAV file.

    Args:
        path: PCM WAV of 8, 16, 24 or 32 bits, any number of channels (averaged) and any sampling rate.
        rate: Samples per second wanted; the sound is resampled if its own rate differs.
        max_seconds: Longest sound that is accepted; checked before the samples are read.

    Returns:
        float32 [samples] in [-1, 1], not empty.

    Raises:
        InputError: If there is no such file, it is not a WAV file, its encoding is not supported, it is truncated,
            empty or too long. Fact ``path``.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with wave.open(str(path), "rb") as file:
            channels, width, own_rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = _frames(path, file.getnframes(), channels * width, size)
            _check(path, frames=frames, rate=own_rate, width=width, max_seconds=max_seconds)
            data = file.readframes(frames)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"There is no sound file {path}.", path=path) from error
    except OSError as error:
        raise InputError(f"The sound {path} cannot be read: {error.strerror or error}.", path=path) from error
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends within its header"
        raise InputError(f"{path} is not a PCM WAV file: {reason}.", advice=_CONVERT, path=path) from error
    samples = _decode(data[: len(data) // (channels * width) * channels * width], width)
    mono = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return _resample(mono, own_rate, rate)


def _frames(path: Path, claimed: int, frame_bytes: int, size: int) -> int:
    """Frames to read: never more than the file can hold, whatever its header says."""
    possible = size // frame_bytes
    if claimed > possible and claimed * frame_bytes < _STREAMED:
        raise InputError(
            f"The sound {path} is truncated: its header announces {claimed} samples, "
            f"but a file of {size} bytes holds {possible} at most.",
            path=path,
        )
    return min(claimed, possible)


def _check(path: Path, *, frames: int, rate: int, width: int, max_seconds: float | None) -> None:
    """Refuses what cannot be used, from the header alone."""
    if width not in (1, 2, 3, 4) or rate <= 0:
        raise InputError(
            f"The sound {path} has {8 * width}-bit samples at {rate} Hz, which is not supported.",
            advice=_CONVERT,
            path=path,
        )
    if frames == 0:
        raise InputError(f"The sound {path} is empty.", path=path)
    if max_seconds is not None and frames / rate > max_seconds:
        raise InputError(
            f"The sound {path} is {frames / rate:.1f} s long; this model takes {max_seconds:.1f} s at most.",
            advice="Cut it into shorter pieces.",
            path=path,
            seconds=frames / rate,
            max_seconds=max_seconds,
        )


def _decode(data: bytes, width: int) -> npt.NDArray[np.float32]:
    """Little-endian PCM (8 bits: unsigned, as WAV has it) to float32 in [-1, 1)."""
    if width == 1:
        return (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128.0) / 128.0
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return padded.view("<i4").reshape(-1).astype(np.float32) / 2.0**31
    return np.frombuffer(data, dtype=f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)


def _resample(samples: npt.NDArray[np.float32], own_rate: int, rate: int) -> npt.NDArray[np.float32]:
    if own_rate == rate:
        return samples
    import soxr

    return cast("npt.NDArray[np.float32]", soxr.resample(samples, own_rate, rate, quality="HQ"))
