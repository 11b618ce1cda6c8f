"""``/v1/messages`` and ``/v1/messages/count_tokens``: what may be asked, in Anthropic's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from coterie.server.schemas.chat import MOST_MESSAGES, MOST_PARTS, Text
from coterie.server.schemas.fields import Fields, ModelName, Nothing, SamplingFields, StopTexts, Tokens


class TextBlock(Fields):
    """Text."""

    type: Literal["text"]
    text: Text


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


UserBlock = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
AnswerBlock = Annotated[TextBlock | ThinkingBlock, Field(discriminator="type")]
UserBlocks = Annotated[list[UserBlock], Field(max_length=MOST_PARTS)]
AnswerBlocks = Annotated[list[AnswerBlock], Field(max_length=MOST_PARTS)]


def _text_or_blocks(value: Any) -> str:
    return "blocks" if isinstance(value, list) else "text"


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
System = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Annotated[list[TextBlock], Field(max_length=MOST_PARTS)], Tag("blocks")],
    Discriminator(_text_or_blocks),
]


class Metadata(Fields):
    """Of the caller; nothing is kept of it."""

    user_id: Annotated[str, Field(max_length=512)] | None = None


class NoThinking(Fields):
    """As is: whether a model thinks is up to its template."""

    type: Literal["disabled"]


class CountRequest(Fields):
    """A conversation whose length is wanted."""

    model: ModelName
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: System | None = None
    tools: Nothing = None


class MessagesRequest(SamplingFields, CountRequest):
    """A conversation that is to be gone on with."""

    max_tokens: Tokens
    stop_sequences: StopTexts | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
