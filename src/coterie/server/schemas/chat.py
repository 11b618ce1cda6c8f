"""``/v1/chat/completions``: what may be asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from coterie.generation.toolbox import Toolbox
from coterie.server.refusals import Refusal
from coterie.server.schemas.fields import (
    Fields,
    Nothing,
    NotYet,
    Off,
    Tokens,
)
from coterie.server.schemas.sampling import CoterieFields, Logprobs, OpenAISamplingFields
from coterie.server.schemas.speech import ChatAudio, Modalities, SpeechCoterieFields, SpokenAudio
from coterie.server.schemas.tools import CallId, Calls, ChosenTool, ToolChoice, Tools, toolbox
from coterie.server.schemas.videos import VideoFields

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
    audio: SpokenAudio | None = None
    annotations: Nothing = None
    parsed: NotYet = None


class ToolMessage(Fields):
    """What came of a call."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: CallId


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class ChatCoterieFields(CoterieFields, SpeechCoterieFields):
    """What no other server has, and answers to conversations have."""

    voice_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Makes the sound repeatable, by random numbers of its own."""


class ChatRequest(OpenAISamplingFields, VideoFields):
    """A conversation that is to be gone on with."""

    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Modalities | None = None
    audio: ChatAudio | None = None
    store: Off = None
    coterie: ChatCoterieFields | None = None
    chat_template_kwargs: Variables | None = None
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
        self._check_speech()
        return self

    def _check_speech(self) -> None:
        """Refuses what an answer in speech cannot have, and what is said of one that is not asked for."""
        asked = self.speaks
        more = self.coterie or ChatCoterieFields()
        for param, given in (
            ("audio", self.audio),
            ("coterie.max_speech", more.max_speech),
            ("coterie.voice_greedy", more.voice_greedy),
            ("coterie.voice_seed", more.voice_seed),
        ):
            if given is not None and not asked:
                raise Refusal(400, f'{param} is for answers in speech: say modalities ["text", "audio"].', param=param)
        if not asked:
            return
        if "text" not in (self.modalities or ()):
            raise Refusal(
                400, 'modalities: an answer in speech has its text, too: say ["text", "audio"].', param="modalities"
            )
        if more.voice_greedy and more.voice_seed is not None:
            param = "coterie.voice_seed"
            raise Refusal(400, f"{param}: nothing is drawn with it, as voice_greedy is asked for.", param=param)
        for param, wanted, why in (
            ("n", self.choices > 1, "one answer is spoken, not several"),
            ("tools", bool(self.tools), "a call of a tool is not for speaking"),
            ("logprobs", bool(self.logprobs), "a spoken answer tells no log probabilities"),
            ("stop", bool(self.stop), "the text that ends the answer would be spoken"),
        ):
            if wanted:
                raise Refusal(400, f"{param} does not go with speech: {why}.", param=param, code="unsupported")

    @property
    def speaks(self) -> bool:
        """Whether the answer is to be spoken, too."""
        return "audio" in (self.modalities or ())

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
