"""Frames of speech on their way to samples: chunk by chunk while they come, or all of them at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coterie.generation.vocoder import Vocoder

Samples = npt.NDArray[np.float32]

FIRST_FRAMES, MOST_FRAMES = 1, 25
"""Frames of the first chunk of sound, which is waited for, and of the longest. Each has twice as many as the one before
it: whoever listens has heard little when the next one is due."""


class Frames:
    """The frames of one answer.

    Args:
        code2wav: The model's vocoder.
        on_sound: Told the samples of each chunk, float32 [samples]. Without it all frames are decoded at the end, as
            transformers does it.

    Attributes:
        count: Frames so far.
        first_at: ``time.perf_counter()`` when the first samples were there; None before.
    """

    def __init__(self, code2wav: Any, on_sound: Callable[[Samples], None] | None) -> None:
        self._code2wav = code2wav
        self._on_sound = on_sound
        self._vocoder = None if on_sound is None else Vocoder(code2wav)
        self._waiting: list[Tensor] = []
        self._chunks: list[Samples] = []
        self._next = FIRST_FRAMES
        self.count = 0
        self.first_at: float | None = None

    def add(self, frame: Tensor) -> None:
        """Takes a frame's codes, int64 [Q]."""
        self.count += 1
        self._waiting.append(frame)
        if self._vocoder is not None and len(self._waiting) >= self._next:
            self._next = min(2 * self._next, MOST_FRAMES)
            self.take(self._vocoder.decode(self._waited()))

    def end(self) -> Samples:
        """All samples. Harmless when repeated."""
        if self._waiting and self._vocoder is not None:
            self.take(self._vocoder.decode(self._waited()))
        elif self._waiting:
            with torch.no_grad():
                waveform = self._code2wav.chunked_decode(self._waited()[None])
            self.take(waveform.reshape(-1).float())
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)

    def take(self, samples: Tensor) -> None:
        """Takes the next samples, float32 [samples]."""
        chunk: Samples = samples.numpy()
        self.first_at = self.first_at or time.perf_counter()
        self._chunks.append(chunk)
        if self._on_sound is not None and len(chunk):
            self._on_sound(chunk)

    def _waited(self) -> Tensor:
        """The codes of those that wait, int64 [Q, F]; they do so no more."""
        codes = torch.stack(self._waiting, dim=1)
        self._waiting.clear()
        return codes
