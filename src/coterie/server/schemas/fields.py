"""What the fields of all requests have in common: strict types, bounds on every number, no field that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from coterie.server.refusals import Refusal

NOT_YET = frozenset({
    "audio", "best_of", "cache_control", "chat_template", "container", "context_management",
    "dry_multiplier", "extra_body", "file", "function_call", "functions", "grammar", "guided_choice", "guided_grammar",
    "guided_json", "guided_regex", "include_stop_str_in_output", "allowed_token_ids", "bad_words",
    "json_schema", "length_penalty", "max_thinking_tokens", "mcp_servers", "mirostat", "prompt_logprobs",
    "mm_processor_kwargs", "modalities", "n_probs", "prediction", "reasoning",
    "refusal", "return_token_ids", "service_tier", "skip_special_tokens", "structured_outputs",
    "suffix", "thinking", "tool_calls", "top_a", "truncate_prompt_tokens", "use_beam_search", "verbosity",
    "web_search_options",
    # Of transcriptions.
    "chunking_strategy", "include[]", "language", "prompt", "timestamp_granularities[]",
})  # fmt: skip
"""Fields that other servers have and this one has not."""

_LONGEST_MESSAGE = 500
MOST_TOKENS = 1 << 24
MOST_STOPS = 16
LONGEST_STOP = 256


class Fields(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Asked = TypeVar("Asked", bound=Fields)


def not_yet(value: Any) -> None:
    """Refuses what other servers have."""
    if value is not None:
        raise PydanticCustomError("not_supported", "is not supported yet")


def _only(*neutral: Any) -> BeforeValidator:
    """Lets pass what changes nothing."""

    def check(value: Any) -> Any:
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            return None
        return not_yet(value)

    return BeforeValidator(check)


NotYet = Annotated[None, BeforeValidator(not_yet)]
"""A field of other servers that has to be null here."""
Off = Annotated[None, _only(False), WithJsonSchema({"anyOf": [{"const": False}, {"type": "null"}]})]
One = Annotated[None, _only(1), WithJsonSchema({"anyOf": [{"const": 1}, {"type": "null"}]})]
Nothing = Annotated[None, _only({}, []), WithJsonSchema({"anyOf": [{"const": {}}, {"const": []}, {"type": "null"}]})]
"""Values of fields of other servers that change nothing, and may be said."""


Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
StopTexts = Annotated[list[StopText], Field(max_length=MOST_STOPS)]
ModelName = Annotated[str, Field(max_length=512)]


def read(kind: type[Asked], value: Mapping[str, Any]) -> Asked:
    """A request as its type.

    Raises:
        Refusal: Naming the first field that is wrong.
    """
    try:
        asked = kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(error, value) from None
    if getattr(asked, "stream_options", None) is not None and not getattr(asked, "stream", None):
        raise Refusal(400, "stream_options is for streams.", param="stream_options")
    if getattr(asked, "return_progress", None) and not getattr(asked, "stream", None):
        raise Refusal(400, "return_progress is for streams.", param="return_progress")
    return asked


def _refusal(error: ValidationError, value: Mapping[str, Any]) -> Refusal:
    """The error that says most: the deepest, where a value could have been several things."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [(_place(one["loc"], value), one) for one in found]
    place, first = max(places, key=lambda pair: len(pair[0]))
    param = ".".join(map(str, place))
    kind, name = first["type"], str(place[-1]) if place else "The request"
    if kind == "extra_forbidden":
        message = f"{param} is not supported yet." if name in NOT_YET else f"{param} is not a field that is known here."
    elif kind == "not_supported":
        message = f"{param} is not supported yet: leave it out."
    elif kind == "missing":
        message = f"{param} is missing."
    else:
        message = f"{param or 'The request'}: {first['msg']}."
    message = message[:_LONGEST_MESSAGE]
    code = "unsupported" if "not supported" in message or kind == "extra_forbidden" else None
    return Refusal(400, message, param=param or None, code=code)


def _place(steps: Sequence[str | int], value: Any) -> tuple[str | int, ...]:
    """Where in a request something is: without the names that alternatives have in the schema."""
    place: list[str | int] = []
    for number, step in enumerate(steps):
        is_last = number == len(steps) - 1
        if isinstance(value, Mapping) and (step in value or is_last):
            value = value.get(str(step))
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(step, int):
            value = value[step] if step < len(value) else None
        else:
            continue
        place.append(step)
    return tuple(place)
