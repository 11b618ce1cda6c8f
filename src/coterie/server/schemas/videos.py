"""What requests of every shape may say of videos: how they are shown."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from coterie.generation.video_options import VideoOptions
from coterie.server.refusals import Refusal
from coterie.server.schemas.fields import Fields


class Processing(Fields):
    """How videos are shown: as vLLM's clients say it, by the names of the models' processors."""

    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_pixels: Annotated[int, Field(ge=1024, le=1 << 26)] | None = None
    use_audio_in_video: bool | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.fps is not None and self.num_frames is not None:
            param = "mm_processor_kwargs.num_frames"
            raise Refusal(400, f"{param}: frames are chosen by it or by fps, not both.", param=param)
        return self

    @property
    def options(self) -> VideoOptions:
        """The same for the model's inputs."""
        return VideoOptions(
            fps=self.fps, frames=self.num_frames, pixels=self.max_pixels, sound=self.use_audio_in_video
        )  # fmt: skip


class VideoFields(Fields):
    """What a request whose conversation may have videos says of all of them."""

    mm_processor_kwargs: Processing | None = None

    @property
    def video_options(self) -> VideoOptions | None:
        """How videos are shown; None if the request does not say."""
        return None if self.mm_processor_kwargs is None else self.mm_processor_kwargs.options
