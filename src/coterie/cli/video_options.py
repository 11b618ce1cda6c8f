"""Options of the commands that show videos to a model, as annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coterie.generation.video_options import VideoOptions

VideosOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--video", exists=True, dir_okay=False, readable=True, metavar="FILE", show_default=False,
        help="A video file (MP4, MOV, WebM, …), seen and, if the model can, heard; may be given several times.",
    ),
]  # fmt: skip

VideoFpsOption = Annotated[
    float | None,
    typer.Option(
        "--video-fps", metavar="N", show_default=False,
        help="Show so many frames of a video per second, such as 0.5. Default: that of the model's processor, often 2.",
    ),
]  # fmt: skip

VideoFramesOption = Annotated[
    int | None,
    typer.Option(
        "--video-frames", metavar="N", show_default=False, help="Show so many frames of a video, however long it is."
    ),
]

VideoPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--video-pixels", metavar="N", show_default=False,
        help="Scale frames down to so many pixels, such as 100000. Fewer pixels are fewer tokens.",
    ),
]  # fmt: skip

VideoSoundOption = Annotated[
    bool | None,
    typer.Option(
        "--video-sound/--no-video-sound", show_default=False,
        help="Let the model hear videos, or only see them. Default: hear them if it can and they have sound.",
    ),
]  # fmt: skip


def video_options(fps: float | None, frames: int | None, pixels: int | None, sound: bool | None) -> VideoOptions:
    """What these options say.

    Raises:
        UsageError: If a value is out of range, or both a rate and a number of frames are given.
    """
    from coterie.generation.video_options import VideoOptions

    return VideoOptions(fps=fps, frames=frames, pixels=pixels, sound=sound)
