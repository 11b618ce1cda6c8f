"""Tools: what a model may call, what it called, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from coterie.server.schemas.fields import Fields, Off

MOST_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=128)]


class Function(Fields):
    """A function that the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=1 << 20)] | None = None
    parameters: dict[str, Any] | None = None
    strict: Off = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return self.model_dump(exclude_none=True)


class Tool(Fields):
    """A tool: a function."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return {"type": "function", "function": self.function.plain()}


class CalledFunction(Fields):
    """A function and what it was given."""

    name: ToolName
    arguments: Annotated[str, Field(max_length=16 << 20)]
    parsed_arguments: Any = None
    """The same, as OpenAI's client keeps it beside them."""


class Called(Fields):
    """A call that the model wanted made."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Field(ge=0, le=MOST_TOOLS)] | None = None
    """Which of the calls it is, as clients remember it from a stream; the list says the same."""


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS)]
Calls = Annotated[list[Called], Field(max_length=MOST_TOOLS)]
