"""What a user may say of how a video is shown to a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coterie.errors import UsageError

_LEAST_PIXELS = 1024
MOST_RATE = 1000.0
"""Frames per second that a video may have, or be shown at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """How much of a video a model is given; what is None is as the model's processor has it.

    Attributes:
        fps: Frames per second. The fewest and the most frames that the processor allows still hold.
        frames: Number of frames, in place of a rate.
        pixels: The most pixels of a frame. Frames are scaled down to it, and keep their aspect ratio.
        sound: Whether the model hears a video's sound track between its frames. None for whether it can and all
            videos of the prompt have one.

    Raises:
        UsageError: If a value is out of range, or both a rate and a number of frames are given.
    """

    fps: float | None = None
    frames: int | None = None
    pixels: int | None = None
    sound: bool | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and self.frames is not None:
            raise UsageError("Frames of a video are chosen by a rate or a number, not both.", advice="Leave one out.")
        if self.fps is not None and not (math.isfinite(self.fps) and 0 < self.fps <= MOST_RATE):
            raise UsageError(f"Frames per second of a video must be above 0 and at most {MOST_RATE:g}.", got=self.fps)
        if self.frames is not None and self.frames < 1:
            raise UsageError("A video has one frame at the least.", got=self.frames)
        if self.pixels is not None and self.pixels < _LEAST_PIXELS:
            raise UsageError(f"A frame of a video has {_LEAST_PIXELS} pixels at the least.", got=self.pixels)
