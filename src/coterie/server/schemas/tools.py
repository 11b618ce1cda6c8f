"""Tools: what a model may call, what it called, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from coterie.generation.toolbox import Toolbox
from coterie.server.refusals import Refusal
from coterie.server.schemas.fields import Fields

MOST_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=128)]


class Function(Fields):
    """A function that the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=1 << 20)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return self.model_dump(exclude_none=True, exclude={"strict"})


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


class ChosenFunction(Fields):
    """The function that has to be called."""

    name: ToolName


class ChosenTool(Fields):
    """The tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


def word_or_tool(value: Any) -> str:
    """Which of the two a choice of tools is: a word such as ``auto``, or the tool itself."""
    return "word" if isinstance(value, str) else "tool"


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("word")] | Annotated[ChosenTool, Tag("tool")],
    Discriminator(word_or_tool),
]
"""Whether tools may be called, or must be."""


def toolbox(
    tools: Sequence[dict[str, Any]], *, wanted: str | None, only: str | None, several: bool, strict: bool = False
) -> Toolbox:
    """The tools of a request.

    Args:
        tools: What it brings, as templates take it.
        wanted: ``none``, ``auto``, or whatever says that one has to be called.
        only: The one that has to be called.
        several: Whether more than one may be called.
        strict: Whether calls are kept to their tools' schemas in any case.

    Raises:
        Refusal: If one has to be called that there is not.
    """
    must = wanted not in (None, "auto", "none") or only is not None
    names = [tool["function"]["name"] for tool in tools]
    if must and (not tools or (only is not None and only not in names)):
        what = "there are no tools" if not tools else f"there is no tool {only!r}"
        raise Refusal(400, f"tool_choice: {what}.", param="tool_choice")
    if wanted == "none":
        return Toolbox()
    return Toolbox(tools=tuple(tools), must=must, only=only, several=several, strict=strict)
