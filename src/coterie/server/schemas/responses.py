"""``/v1/responses``: what may be asked, in the words of OpenAI's newer clients and of Open Responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from coterie.generation.grammar import Grammar
from coterie.generation.sampling import Sampling
from coterie.generation.toolbox import Toolbox
from coterie.server.schemas.chat import MOST_MESSAGES, MOST_PARTS, InputAudio, Text
from coterie.server.schemas.fields import Fields, ModelName, Nothing, NotYet, Off, Tokens, not_yet
from coterie.server.schemas.forms import JsonObject, NamedSchema, PlainText
from coterie.server.schemas.sampling import Penalty, SamplingFields
from coterie.server.schemas.tools import MOST_TOOLS, CallId, Function, ToolName, toolbox, word_or_tool
from coterie.server.schemas.videos import VideoFields


def _keeps_nothing(value: Any) -> None:
    if value is not None and value is not False:
        raise PydanticCustomError("stateless", "not supported, as this server keeps nothing of a request")


Kept = Annotated[None, BeforeValidator(_keeps_nothing), WithJsonSchema({"anyOf": [{"const": False}, {"type": "null"}]})]
"""What asks for something to be kept, or for what was. Nothing is: a request brings the whole conversation."""
ItemId = Annotated[str, Field(max_length=256)]
"""What a client calls an item. It changes nothing."""
ItemStatus = Literal["in_progress", "completed", "incomplete"]
ShortText = Annotated[str, Field(max_length=512)]


class InputText(Fields):
    """Text of whoever asks."""

    type: Literal["input_text"]
    text: Text


class OutputText(Fields):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: Text
    annotations: Nothing = None
    logprobs: Nothing = None
    parsed: Any = None
    """The same, as OpenAI's client keeps it beside it."""


class InputImage(Fields):
    """A picture, in itself: ``data:image/png;base64,...``. Nothing is fetched."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto"] | None = None
    file_id: Kept = None


class InputSound(Fields):
    """A sound, in base64."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputVideo(Fields):
    """A video, in itself: ``data:video/mp4;base64,...``, as OpenRouter's clients show one. Nothing is fetched."""

    type: Literal["input_video"]
    video_url: str


class Thought(Fields):
    """Some of what a model thought."""

    type: Literal["reasoning_text"]
    text: Text


Part = Annotated[InputText | OutputText | InputImage | InputSound | InputVideo, Field(discriminator="type")]


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Annotated[list[Part], Field(max_length=MOST_PARTS)], Tag("parts")],
    Discriminator(_text_or_parts),
]
Output = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Annotated[list[InputText], Field(max_length=MOST_PARTS)], Tag("parts")],
    Discriminator(_text_or_parts),
]


class MessageItem(Fields):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None
    status: ItemStatus | None = None


class CallItem(Fields):
    """A call that the model wanted made."""

    type: Literal["function_call"]
    call_id: CallId
    name: ToolName
    arguments: Annotated[str, Field(max_length=16 << 20)]
    parsed_arguments: Any = None
    id: ItemId | None = None
    status: ItemStatus | None = None


class ResultItem(Fields):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Output
    id: ItemId | None = None
    status: ItemStatus | None = None


class ReasoningItem(Fields):
    """What the model thought before an answer."""

    type: Literal["reasoning"]
    content: Annotated[list[Thought], Field(max_length=MOST_PARTS)] | None = None
    summary: Nothing = None
    encrypted_content: NotYet = None
    id: ItemId | None = None
    status: ItemStatus | None = None


def _kind(value: Any) -> str | None:
    """Which item it is; a message need not say so."""
    return value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]


class ResponseTool(Function):
    """A function that the model may call."""

    type: Literal["function"]

    def as_tool(self) -> dict[str, Any]:
        """As templates take it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type", "strict"})}

    def as_said(self) -> dict[str, Any]:
        """As answers repeat it."""
        return {"type": "function", "name": self.name, "description": self.description, "parameters": self.parameters,
                "strict": bool(self.strict)}  # fmt: skip


def _only_functions(value: Any) -> Any:
    """Names a tool of another kind, not what it lacks to be a function."""
    return not_yet(value) if isinstance(value, dict) and value.get("type", "function") != "function" else value


Tools = Annotated[list[Annotated[ResponseTool, BeforeValidator(_only_functions)]], Field(max_length=MOST_TOOLS)]


class SchemaFormat(NamedSchema):
    """JSON that a schema allows."""

    type: Literal["json_schema"]

    @property
    def grammar(self) -> Grammar:
        """The form."""
        return Grammar.json_schema(self.schema_)


Format = Annotated[PlainText | JsonObject | SchemaFormat, Field(discriminator="type")]


class TextSettings(Fields):
    """The form of the answer."""

    format: Format | None = None
    verbosity: NotYet = None


class NamedTool(Fields):
    """The tool that has to be called."""

    type: Literal["function"]
    name: ToolName


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("word")] | Annotated[NamedTool, Tag("tool")],
    Discriminator(word_or_tool),
]


class ReasoningSettings(Fields):
    """How the model thinks, if its chat template asks for that."""

    effort: Annotated[str, Field(max_length=32)] | None = None
    summary: Literal["auto"] | None = None
    """There is none: what the model thought comes whole."""
    generate_summary: NotYet = None


class StreamSettings(Fields):
    """What a stream has besides the answer."""

    include_obfuscation: Off = None


class ResponseRequest(SamplingFields, VideoFields):
    """A conversation that is to be gone on with."""

    input: Annotated[Annotated[Text, Tag("text")] | Annotated[Items, Tag("parts")], Discriminator(_text_or_parts)]
    model: ModelName | None = None
    instructions: Text | None = None
    max_output_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamSettings | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: NotYet = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], ShortText], Field(max_length=16)] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Kept = None
    previous_response_id: Kept = None
    conversation: Kept = None
    background: Kept = None
    prompt: Kept = None
    include: Nothing = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    return_progress: bool | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        _ = self.toolbox
        return self

    @property
    def toolbox(self) -> Toolbox:
        """The tools, and how they may be called."""
        choice = self.tool_choice
        return toolbox(
            [tool.as_tool() for tool in self.tools or ()],
            wanted=choice if isinstance(choice, str) else None,
            only=choice.name if isinstance(choice, NamedTool) else None,
            several=self.parallel_tool_calls is not False,
            strict=any(tool.strict for tool in self.tools or ()),
        )

    def wishes(self, most: int | None) -> Sampling:
        """How tokens are chosen.

        Args:
            most: New tokens.
        """
        said = None if self.text is None else self.text.format
        return self.sampling(
            most=most, presence_penalty=self.presence_penalty or 0.0, frequency_penalty=self.frequency_penalty or 0.0,
            grammar=None if said is None else said.grammar,
        )  # fmt: skip
