"""What answers say."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import RootModel
from typing_extensions import TypedDict

Finish = Literal["stop", "length", "tool_calls"]


class PromptTokens(TypedDict):
    """What the tokens of a prompt stand for, and what became of them."""

    audio_tokens: int
    cache_write_tokens: int
    cached_tokens: int
    image_tokens: int
    text_tokens: int
    video_tokens: int


class CompletionTokens(TypedDict):
    """What the tokens of a spoken answer are: of its text, and frames of its sound."""

    audio_tokens: int
    text_tokens: int


class Usage(TypedDict):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: NotRequired[CompletionTokens]


class SpeechFacts(TypedDict):
    """Of an answer in speech: why it ended, its length, how long making it took, and when after the text it began."""

    finish_reason: str
    seconds: float
    made_in_s: float
    first_sound_s: NotRequired[float]


class MoreOfOne(TypedDict):
    """What OpenAI's shape has no room for, of a choice."""

    finish_reason: str
    speech: NotRequired[SpeechFacts]
    provenance: NotRequired[dict[str, float | str | dict[str, float]]]


class More(MoreOfOne):
    """The same of the first choice, and where there are several, of each."""

    choices: NotRequired[list[MoreOfOne]]


class LikelyToken(TypedDict):
    """A token and its log probability; its bytes, as it may be half a character."""

    token: str
    logprob: float
    bytes: list[int]


class ToldToken(LikelyToken):
    """A token of an answer, with the likeliest ones at its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    """How likely the tokens of an answer were."""

    content: list[ToldToken]
    refusal: None


class TextLogprobs(TypedDict):
    """How likely the tokens of a text were; None for the first, which nothing is before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(TypedDict):
    """A function and what it is to be given, as the model wrote it."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class SpokenAnswer(TypedDict):
    """The sound of an answer, in base64, and its text; until ``expires_at`` the id is enough to say it again."""

    id: str
    data: str
    transcript: str
    expires_at: int


class AnswerMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    audio: NotRequired[SpokenAnswer | None]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    """An answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
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
    logprobs: TextLogprobs | None
    finish_reason: Finish


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
    """Tokens that a request took, in Anthropic's words: a prompt is the sum of the first three."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
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


class ResponseTokens(TypedDict):
    """Tokens that a request took, in the words of ``/v1/responses``."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseFailure(TypedDict):
    """Why there is no whole answer."""

    code: str
    message: str


class ResponseResource(TypedDict):
    """The answer of ``/v1/responses``; it repeats what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: ResponseFailure | None
    frequency_penalty: float
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseTokens | None
    user: str | None


class SoundTokens(TypedDict):
    """What is asked of a sound: the sound, and the words around it."""

    audio_tokens: int
    text_tokens: int


class TranscriptionTokens(TypedDict):
    """Tokens that a sound and its text took."""

    type: Literal["tokens"]
    input_tokens: int
    input_token_details: SoundTokens
    output_tokens: int
    total_tokens: int


class Transcription(TypedDict):
    """The answer of ``/v1/audio/transcriptions``."""

    text: str
    usage: TranscriptionTokens


class InputTokens(TypedDict):
    """How many tokens a conversation has, in OpenAI's words."""

    object: Literal["response.input_tokens"]
    input_tokens: int


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
    prompt_cache: bool
    expert_bytes: int
    expert_cache_bytes: int
    architecture: Modalities
    voices: list[str]


class ModelList(TypedDict):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ServedModel]


class Slot(TypedDict):
    """A place for a request."""

    id: int
    n_ctx: int | None
    speculative: bool
    is_processing: bool
    phase: Literal["prefill", "decode"] | None


class SlotList(RootModel[list[Slot]]):
    """The answer of ``/slots``."""


class DefaultSettings(TypedDict):
    """What a request gets that does not say."""

    n_ctx: int | None
    params: dict[str, float]


class Props(TypedDict):
    """The answer of ``/props``, in llama-server's words."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    modalities: dict[str, bool]
    build_info: str
    is_sleeping: bool


class Status(TypedDict):
    """The answer of ``/healthz``, ``/readyz`` and ``/health``."""

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
