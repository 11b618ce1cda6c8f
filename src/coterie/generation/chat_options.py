"""What a caller may say about how a conversation becomes a prompt; checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import UsageError
from coterie.hf.templates import is_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation becomes a prompt.

    Attributes:
        template: Another template than the model's: the name of one of several that it has, or a file.
        variables: What the template is told besides the messages, such as ``enable_thinking``.

    Raises:
        UsageError: If a variable is none that a template can be told.
    """

    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.variables.items():
            if name in ("messages", "add_generation_prompt", "tools", "documents") or not is_json(value):
                raise UsageError(f"A template cannot be told {name} = {value!r}.", advice="Give it JSON values.")
