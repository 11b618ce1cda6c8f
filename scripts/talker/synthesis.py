"""Words spoken by espeak-ng."""

from __future__ import annotations

import io
import shutil
import subprocess

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from talker.words import EspeakVoice

Samples = npt.NDArray[np.float32]

RATE = 24_000
"""Samples per second of all that is spoken here: the vocoder's."""

FRAME = 1920
"""Samples of a frame: 80 ms, as in Qwen3-Omni."""

_SILENT = 0.006
_MARGIN = 240


def need_espeak() -> None:
    """Says what to install where espeak-ng is missing.

    Raises:
        SystemExit: If it is.
    """
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed, which speaks the words (Debian, Ubuntu: apt install espeak-ng).")


def spoken(word: str, voice: EspeakVoice) -> Samples:
    """A word as espeak-ng says it, without the silence around it, filled up to whole frames: float32 [samples]."""
    command = ["espeak-ng", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), "--stdout", word]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples, own_rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    samples = np.asarray(soxr.resample(samples, own_rate, RATE, quality="HQ"), np.float32)
    (loud,) = np.nonzero(np.abs(samples) > _SILENT)
    samples = samples[max(0, loud[0] - _MARGIN) : loud[-1] + _MARGIN]
    return np.pad(samples, (0, -len(samples) % FRAME))
