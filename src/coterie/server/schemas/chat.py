"""``/v1/chat/completions``: what may be asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from coterie.generation.toolbox import Toolbox
from coterie.generation.video_options import VideoOptions
from coterie.server.refusals import Refusal
from coterie.server.schemas.fields import (
    Fields,
    Nothing,
    NotYet,
    Off,
    TextOnly,
    Tokens,
)
from coterie.server.schemas.sampling import Logprobs, OpenAISamplingFields
from coterie.server.schemas.tools import CallId, Calls, ChosenTool, ToolChoice, Tools, toolbox

MOST_MESSAGES = 4096
MOST_PARTS = 1024
LONGEST_TEXT = 16 << 20


class TextPart(Fields):
    """Text."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=LONGEST_TEXT)]


class ImageUrl(Fields):
    """A picture, in itself: ``data:image/png;base64,...``. Nothing is fetched."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(Fields):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Fields):
    """A sound, in base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "m4a", "aac", "webm"]


class AudioPart(Fields):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoUrl(Fields):
    """A video, in itself: ``data:video/mp4;base64,...``. Nothing is fetched."""

    url: str


class VideoPart(Fields):
    """A video, as vLLM's clients show one."""

    type: Literal["video_url"]
    video_url: VideoUrl


class Processing(Fields):
    """How videos are shown: as vLLM's clients say it, by the names of the models' processors."""

    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_pixels: Annotated[int, Field(ge=1024, le=1 << 26)] | None = None
    use_audio_in_video: bool | None = None

    @property
    def options(self) -> VideoOptions:
        """The same for the model's inputs."""
        return VideoOptions(
            fps=self.fps, frames=self.num_frames, pixels=self.max_pixels, sound=self.use_audio_in_video
        )  # fmt: skip


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Annotated[list[Part], Field(max_length=MOST_PARTS)], Tag("parts")],
    Discriminator(_text_or_parts),
]
TextContent = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Annotated[list[TextPart], Field(max_length=MOST_PARTS)], Tag("parts")],
    Discriminator(_text_or_parts),
]


Scalar = bool | int | float | Annotated[str, Field(max_length=256)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Variables = Annotated[dict[VariableName, Scalar], Field(max_length=16)]
"""What a template may be told besides the messages."""


class SystemMessage(Fields):
    """What the model is told to be."""

    role: Literal["system", "developer"]
    content: TextContent


class UserMessage(Fields):
    """What the user says and shows."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Fields):
    """What the model answered before."""

    role: Literal["assistant"]
    content: TextContent | None = None
    reasoning_content: Text | None = None
    tool_calls: Calls | None = None
    function_call: NotYet = None
    refusal: NotYet = None
    audio: NotYet = None
    annotations: Nothing = None
    parsed: NotYet = None


class ToolMessage(Fields):
    """What came of a call."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: CallId


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class ChatRequest(OpenAISamplingFields):
    """A conversation that is to be gone on with."""

    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: TextOnly = None
    audio: NotYet = None
    store: Off = None
    chat_template_kwargs: Variables | None = None
    mm_processor_kwargs: Processing | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None

    @property
    def variables(self) -> dict[str, Scalar]:
        """What the template is told, by the field that says it."""
        said: dict[str, Scalar] = {f"chat_template_kwargs.{k}": v for k, v in (self.chat_template_kwargs or {}).items()}
        return said if self.reasoning_effort is None else said | {"reasoning_effort": self.reasoning_effort}

    @property
    def most(self) -> int | None:
        """New tokens at most, as it was asked; the smaller one of two names for it."""
        return min((one for one in (self.max_tokens, self.max_completion_tokens) if one is not None), default=None)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "top_logprobs is for logprobs, which are not asked for.", param="top_logprobs")
        _ = self.toolbox
        shown = self.mm_processor_kwargs
        if shown is not None and shown.fps is not None and shown.num_frames is not None:
            param = "mm_processor_kwargs.num_frames"
            raise Refusal(400, f"{param}: frames are chosen by it or by fps, not both.", param=param)
        return self

    @property
    def video_options(self) -> VideoOptions:
        """How videos are shown."""
        return VideoOptions() if self.mm_processor_kwargs is None else self.mm_processor_kwargs.options

    @property
    def told_logprobs(self) -> int | None:
        """Alternatives that are told of each token; None where nothing is told."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def toolbox(self) -> Toolbox:
        """The tools, and how they may be called."""
        choice = self.tool_choice
        return toolbox(
            [tool.plain() for tool in self.tools or ()],
            wanted=choice if isinstance(choice, str) else None,
            only=choice.function.name if isinstance(choice, ChosenTool) else None,
            several=self.parallel_tool_calls is not False,
            strict=any(tool.function.strict for tool in self.tools or ()),
        )


class TemplateRequest(Fields):
    """A conversation that is to be shown as the model sees it."""

    messages: Messages
    tools: Tools | None = None
