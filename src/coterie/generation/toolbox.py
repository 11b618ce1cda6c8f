"""The tools of a request, and how a model may call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """Tools that a model may call.

    Attributes:
        tools: What it is told of, each as ``{"type": "function", "function": {"name": ..., "parameters": ...}}``.
        must: Whether it has to call one.
        only: The one that it has to call; None if it may choose.
        several: Whether it may call more than one in an answer.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    must: bool = False
    only: str | None = None
    several: bool = True

    @property
    def callable_tools(self) -> tuple[Mapping[str, Any], ...]:
        """Those that an answer can call."""
        return tuple(one for one in self.tools if self.only in (None, one["function"]["name"]))
