"""Calls of tools that models write into their text, taken out of it.

``<tool_call>…</tool_call>`` is how most say that they want something called. What stands between is JSON (Qwen,
Hermes), or a function and its parameters between marks (Qwen3-Coder), or a name and pairs of keys and values (GLM).
DeepSeek has marks of its own around a name and JSON, which older models put into a fence. gpt-oss has a channel for it,
which :class:`~coterie.generation.answers.ChannelReader` reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.generation.answers import ToolCall
from coterie.generation.model_json import read_written, written
from coterie.generation.streaming import overlap

OPENING, CLOSING = "<tool_call>", "</tool_call>"
DEEPSEEK_OPENING, DEEPSEEK_SEPARATOR, DEEPSEEK_CLOSING = (
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
)
DEEPSEEK_TURN = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
"""What stands around all calls of a turn, and says nothing."""

_CLOSINGS = {OPENING: CLOSING, DEEPSEEK_OPENING: DEEPSEEK_CLOSING}
_MARKS = (*_CLOSINGS, *DEEPSEEK_TURN)
_FENCE = re.compile(r"```json\s*(.*?)\s*```", re.DOTALL)

_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NAME = re.compile(r"[\w.-]{1,64}")


class CallText:
    """Takes a text piece by piece and hands on what is no call.

    Args:
        tools: What may be called, as :func:`~coterie.generation.chat.chat_prompt` takes it: their parameters' types
            say which values are texts.
        on_text: Told each piece of the text.

    Attributes:
        text: The text without calls.
        calls: The calls.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], on_text: Callable[[str], None] | None = None) -> None:
        self.text = ""
        self.calls: list[ToolCall] = []
        self.on_text = on_text
        self._parameters = {str(tool["function"]["name"]): _parameters(tool["function"]) for tool in tools}
        self._rest = ""
        self._inside = ""

    def feed(self, piece: str) -> None:
        """Takes a piece of the text."""
        self._rest += piece
        while self._read(final=False):
            pass

    def end(self) -> None:
        """Takes what is left."""
        while self._read(final=True):
            pass

    def _read(self, *, final: bool) -> bool:
        """Reads up to the next mark; returns whether there was one."""
        if self._inside:
            before, found, rest = self._rest.partition(_CLOSINGS[self._inside])
            if found or final:
                self._take(before, closed=bool(found))
                self._rest, self._inside = rest, ""
            return bool(found)
        place, mark = min(((at, one) for one in _MARKS if (at := self._rest.find(one)) >= 0), default=(-1, ""))
        before = self._rest if place < 0 else self._rest[:place]
        # Blanks before a call belong to it; whether one comes is not known yet.
        held = 0 if mark or final else overlap(before, _MARKS)
        said = before[: len(before) - held]
        if mark or not final or self.calls:
            said = said.rstrip()
        self._say(said)
        self._rest = self._rest[place + len(mark) :] if mark else before[len(said) :]
        self._inside = mark if mark in _CLOSINGS else ""
        return bool(mark)

    def _say(self, piece: str) -> None:
        if not self.text and self.calls:
            piece = piece.lstrip()
        if piece:
            self.text += piece
            if self.on_text is not None:
                self.on_text(piece)

    def _take(self, body: str, *, closed: bool) -> None:
        """A call, if it is one; else the text that it is."""
        call = self._call(body.strip())
        if call is None:
            self._say(f"{self._inside}{body}{_CLOSINGS[self._inside] if closed else ''}")
        else:
            self.calls.append(call)

    def _call(self, body: str) -> ToolCall | None:
        if DEEPSEEK_SEPARATOR in body:
            return _from_deepseek(body)
        if body.startswith("{"):
            return _from_json(body)
        function = _FUNCTION.fullmatch(body)
        if function is not None:
            return self._from_texts(function[1], _PARAMETER.findall(function[2]))
        name = _NAME.match(body)
        pairs = _PAIR.findall(body)
        if name is not None and (pairs or name[0] == body):
            return self._from_texts(name[0], [(key.strip(), value) for key, value in pairs])
        return None

    def _from_texts(self, name: str, pairs: Sequence[tuple[str, str]]) -> ToolCall:
        types = self._parameters.get(name, {})
        arguments = {key: text if types.get(key) == "string" else _value(text) for key, text in pairs}
        return ToolCall(name=name, arguments=written(arguments))


def _from_json(body: str) -> ToolCall | None:
    try:
        value = read_written(body)
    except ValueError:
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str):
        return None
    return ToolCall(name=name, arguments=arguments if isinstance(arguments, str) else written(arguments))


def _from_deepseek(body: str) -> ToolCall | None:
    kind, _, rest = body.partition(DEEPSEEK_SEPARATOR)
    fence = _FENCE.search(rest)
    name, arguments = (kind, rest) if fence is None else (rest[: fence.start()], fence[1])
    try:
        given = read_written(arguments)
    except ValueError:
        return None
    return ToolCall(name=name.strip(), arguments=written(given)) if name.strip() else None


def _value(text: str) -> Any:
    """What a text says as JSON; itself, if it is none."""
    try:
        return read_written(text)
    except ValueError:
        return text


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters' names → their types."""
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {str(name): one.get("type") for name, one in properties.items() if isinstance(one, Mapping)}
