"""The files that a prompt shows and plays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from coterie.generation.video_options import VideoOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFiles:
    """Files of one or several prompts, each kind in the order in which they mention it.

    Attributes:
        images: Pictures.
        audios: Sounds.
        videos: Videos.
        options: How videos are shown.
    """

    images: tuple[str | Path, ...] = ()
    audios: tuple[str | Path, ...] = ()
    videos: tuple[str | Path, ...] = ()
    options: VideoOptions = field(default_factory=VideoOptions)

    def __bool__(self) -> bool:
        return bool(self.images or self.audios or self.videos)
