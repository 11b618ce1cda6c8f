"""``/v1/messages`` and ``/v1/messages/count_tokens``: what may be asked, in Anthropic's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from coterie.generation.grammar import Grammar
from coterie.generation.toolbox import Toolbox
from coterie.server.refusals import Refusal
from coterie.server.schemas.chat import MOST_MESSAGES, MOST_PARTS, Text
from coterie.server.schemas.fields import (
    Fields,
    ModelName,
    Nothing,
    StopTexts,
    Tokens,
    not_yet,
)
from coterie.server.schemas.forms import Schema
from coterie.server.schemas.sampling import SamplingFields
from coterie.server.schemas.tools import MOST_TOOLS, CallId, ToolName, toolbox
from coterie.server.schemas.videos import VideoFields


class CacheControl(Fields):
    """Where a cache of prompts may be cut. There is none yet, and no answer would differ."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Fields):
    """Text."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None
    citations: Nothing = None


class ThinkingBlock(Fields):
    """What the model thought before an answer."""

    type: Literal["thinking"]
    thinking: Text
    signature: Annotated[str, Field(max_length=4096)] = ""


class ImageSource(Fields):
    """A picture, in base64."""

    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    data: str


class ImageBlock(Fields):
    """A picture."""

    type: Literal["image"]
    source: ImageSource
    cache_control: CacheControl | None = None


class VideoSource(Fields):
    """A video, in base64."""

    type: Literal["base64"]
    media_type: Annotated[str, Field(max_length=64)]
    data: str


class VideoBlock(Fields):
    """A video, in the shape that pictures have. Anthropic's API has none; others that take its requests do."""

    type: Literal["video"]
    source: VideoSource
    cache_control: CacheControl | None = None


class ToolUseBlock(Fields):
    """A call that the model wanted made."""

    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None


def _text_or_blocks(value: Any) -> str:
    return "blocks" if isinstance(value, list) else "text"


TextBlocks = Annotated[list[TextBlock], Field(max_length=MOST_PARTS)]
Texts = Annotated[Annotated[Text, Tag("text")] | Annotated[TextBlocks, Tag("blocks")], Discriminator(_text_or_blocks)]
"""A text, or blocks of it."""


class ToolResultBlock(Fields):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Texts = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


UserBlock = Annotated[TextBlock | ImageBlock | VideoBlock | ToolResultBlock, Field(discriminator="type")]
AnswerBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]
UserBlocks = Annotated[list[UserBlock], Field(max_length=MOST_PARTS)]
AnswerBlocks = Annotated[list[AnswerBlock], Field(max_length=MOST_PARTS)]


class UserTurn(Fields):
    """What the user says and shows."""

    role: Literal["user"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[UserBlocks, Tag("blocks")], Discriminator(_text_or_blocks)
    ]


class AssistantTurn(Fields):
    """What the model answered before."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[AnswerBlocks, Tag("blocks")], Discriminator(_text_or_blocks)
    ]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class MessagesTool(Fields):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: Annotated[str, Field(max_length=1 << 20)] | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.input_schema}}


class MessagesToolChoice(Fields):
    """Whether tools may be called, or must be: ``any``, or the one of a name with ``tool``."""

    type: Literal["auto", "none", "any", "tool"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.name is not None) != (self.type == "tool"):
            raise Refusal(400, "tool_choice.name is for the type tool, and only for it.", param="tool_choice.name")
        return self


class Metadata(Fields):
    """Of the caller; nothing is kept of it."""

    user_id: Annotated[str, Field(max_length=512)] | None = None


def _no_thinking(value: Any) -> Any:
    return value if value == "disabled" else not_yet(value)


class NoThinking(Fields):
    """The template is told, if it asks; else whether a model thinks is up to it."""

    type: Annotated[Literal["disabled"], BeforeValidator(_no_thinking)]


class OutputFormat(Fields):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    schema_: Schema


class OutputConfig(Fields):
    """What the answer is to be like."""

    format: OutputFormat | None = None


class CountRequest(VideoFields):
    """A conversation whose length is wanted."""

    model: ModelName
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: Texts | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: NoThinking | None = None

    @model_validator(mode="after")
    def _checked(self) -> Self:
        _ = self.toolbox
        return self

    @property
    def toolbox(self) -> Toolbox:
        """The tools, and how they may be called."""
        choice = self.tool_choice
        return toolbox(
            [tool.plain() for tool in self.tools or ()],
            wanted=None if choice is None else choice.type,
            only=None if choice is None else choice.name,
            several=choice is None or not choice.disable_parallel_tool_use,
            strict=any(tool.strict for tool in self.tools or ()),
        )


class MessagesRequest(SamplingFields, CountRequest):
    """A conversation that is to be gone on with."""

    max_tokens: Tokens
    stop_sequences: StopTexts | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    """There is one for all."""

    @property
    def form(self) -> Grammar | None:
        """The form that the answer is to have."""
        wanted = None if self.output_config is None else self.output_config.format
        return None if wanted is None else Grammar.json_schema(wanted.schema_)
