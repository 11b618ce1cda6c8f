"""``/v1/audio/transcriptions``: what may be asked. A form has texts alone, which stand for numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from coterie.server.schemas.fields import Fields, ModelName


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise PydanticCustomError("number", "Input should be a number") from None


def _off(value: Any) -> None:
    if value != "false":
        raise PydanticCustomError("not_supported", "is not supported yet")


class TranscriptionRequest(Fields):
    """A sound whose words are wanted."""

    file: Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
    model: ModelName | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] = 0.0
    stream: Annotated[None, BeforeValidator(_off), WithJsonSchema({"const": "false"})] = None
