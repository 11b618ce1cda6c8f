"""What answers say."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Finish = Literal["stop", "length", "tool_calls"]


class PromptTokens(TypedDict):
    """What became of the tokens of a prompt."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class More(TypedDict):
    """What OpenAI's shape has no room for."""

    finish_reason: str
    provenance: NotRequired[dict[str, float | dict[str, float]]]


class CalledFunction(TypedDict):
    """A function and what it is to be given, as the model wrote it."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    """An answer."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Finish


class ChatCompletion(TypedDict):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    coterie: More


class TextChoice(TypedDict):
    """A continuation."""

    index: int
    text: str
    logprobs: None
    finish_reason: Finish | None


class TextCompletion(TypedDict):
    """The answer of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    coterie: More


class Block(TypedDict):
    """A part of an answer in Anthropic's shape."""

    type: Literal["text", "thinking", "tool_use"]
    text: NotRequired[str]
    id: NotRequired[str]
    name: NotRequired[str]
    input: NotRequired[dict[str, Any]]
    thinking: NotRequired[str]
    signature: NotRequired[str]


class MessageUsage(TypedDict):
    """Tokens that a request took, in Anthropic's words."""

    input_tokens: int
    output_tokens: int


class AnsweredMessage(TypedDict):
    """The answer of ``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(TypedDict):
    """The answer of ``/v1/messages/count_tokens``."""

    input_tokens: int


class TokenList(TypedDict):
    """The answer of ``/tokenize``."""

    tokens: list[int]


class PlainContent(TypedDict):
    """The answer of ``/detokenize``."""

    content: str


class RenderedPrompt(TypedDict):
    """The answer of ``/apply-template``."""

    prompt: str


class Modalities(TypedDict):
    """What a model takes and gives."""

    input_modalities: list[str]
    output_modalities: list[str]


class ServedModel(TypedDict):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    memory_budget_bytes: int | None
    expert_bytes: int
    expert_cache_bytes: int
    architecture: Modalities


class ModelList(TypedDict):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ServedModel]


class Status(TypedDict):
    """The answer of ``/healthz`` and ``/readyz``."""

    status: str


class ErrorFacts(TypedDict):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """An error in OpenAI's shape."""

    error: ErrorFacts


class AnthropicErrorFacts(TypedDict):
    """What is wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicErrorAnswer(TypedDict):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorFacts
    request_id: str


Chunk = dict[str, Any]
"""A piece of a stream."""
