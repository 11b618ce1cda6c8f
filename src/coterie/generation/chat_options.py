"""What a caller may say about how a conversation becomes a prompt; checked without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import UsageError
from coterie.hf.templates import is_json

_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch for thinking: Qwen and GLM, and DeepSeek and Granite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation becomes a prompt.

    Attributes:
        template: Another template than the model's: the name of one of several that it has, or a file.
        variables: What the template is told besides the messages, such as ``enable_thinking``.
        thinking: Whether the model is to think before it answers, of a model whose template has a switch for it; None
            as the template has it.

    Raises:
        UsageError: If a variable is none that a template can be told.
    """

    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool | None = None

    def __post_init__(self) -> None:
        for name, value in self.variables.items():
            if name in ("messages", "add_generation_prompt", "tools", "documents") or not is_json(value):
                raise UsageError(f"A template cannot be told {name} = {value!r}.", advice="Give it JSON values.")

    def told(self, settings: Collection[str]) -> dict[str, Any]:
        """What a template is told.

        Args:
            settings: The names that it reads.

        Raises:
            UsageError: If it does not read what was said.
        """
        known = f"It reads {', '.join(sorted(settings))}." if settings else "It can be told nothing."
        for name in self.variables:
            if name not in settings:
                raise UsageError(f"The chat template has no setting {name!r}.", advice=known)
        if self.thinking is None:
            return dict(self.variables)
        switch = next((name for name in _SWITCHES if name in settings), None)
        if switch is None:
            raise UsageError("The chat template has no switch for thinking.", advice=known)
        return {**self.variables, switch: self.thinking}
