"""Answers in a form that only their tokenizer knows: taken apart at their end, as it says.

Until then nothing is told of them: any of it may turn out to be a thought or a call. What the tokenizer says is a
stranger's. Where it cannot be followed, or leaves something out, the answer is the plain text that it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coterie.generation.answers import CALL_MARKS, AnswerReader, ToolCall, reader_for
from coterie.generation.call_formats import call_format
from coterie.generation.model_json import read_written, written
from coterie.generation.tool_calls import CallText
from coterie.hf.responses import ResponseForm, UnreadableResponse, parse_response, response_form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coterie.generation.toolbox import Toolbox

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""What messages call what a model thought."""
_MOST_CALLS = 128
_LONGEST_NAME = 256
_log = logging.getLogger("coterie.engine")


@dataclass(frozen=True, slots=True)
class _Message:
    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]


class ParsedReader(AnswerReader):
    """Reads answers as their tokenizer says, once they are whole.

    Args:
        tokenizer: The tokenizer.
        form: What it says.
        prompt: The rendered prompt.
        toolbox: What may be called.
    """

    apart: ClassVar = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: ResponseForm, prompt: str, toolbox: Toolbox) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        super().__init__(marks=tuple(dict.fromkeys([*CALL_MARKS, *(one.content for one in added if one.special)])))
        self._silent = [mark for mark in self.marks if mark not in CALL_MARKS]
        self._end = str(tokenizer.eos_token or "")
        self._form = form
        self._prompt = prompt
        self._toolbox = toolbox

    def _read(self, *, final: bool) -> None:
        if not final or not self._rest:
            return
        raw, self._rest = self._rest, ""
        try:
            message = self._parsed(raw)
        except UnreadableResponse as problem:
            _log.warning("An answer stays one text: with this tokenizer's %s %s.", self._form.kind, problem)
            message = _Message(self._plain(raw), "", ())
        self._hand_on("reasoning", message.reasoning)
        self._hand_on("text", message.text)
        self.calls += message.calls if self._toolbox.several else message.calls[:1]

    def _parsed(self, raw: str) -> _Message:
        said = parse_response(self._form, raw, prompt=self._prompt, tools=self._toolbox.tools)
        message = _read_message(said, self._end)
        if not (message.text.strip() or message.reasoning.strip() or message.calls) and self._plain(raw).strip():
            raise UnreadableResponse("nothing is left of it")
        return message

    def _plain(self, raw: str) -> str:
        """The text as it is without special tokens."""
        for mark in self._silent:
            raw = raw.replace(mark, "")
        return raw


def reading(
    tokenizer: PreTrainedTokenizerBase, template: str | None, prompt: str, toolbox: Toolbox, *, formed: bool = False
) -> tuple[AnswerReader, CallText | None]:
    """Chooses how an answer is read: as models of its family write, or else as its tokenizer says.

    Args:
        tokenizer: The tokenizer.
        template: The chat template, or None.
        prompt: The rendered prompt.
        toolbox: What may be called.
        formed: Whether the request says what form the answer has: then there is no other in it.

    Returns:
        What tells its parts apart, and what takes calls out of the text, if that has calls in it.
    """
    reader = reader_for(tokenizer, template, prompt)
    tools = toolbox.tools
    plain = reader, CallText(tools) if tools else None
    known: Mapping[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    if template is None or formed or call_format(template, known) is not None:
        return plain
    if not tools and type(reader) is not AnswerReader:
        return plain
    form = response_form(tokenizer)
    wanted = {*_REASONING, "tool_calls"} if tools else {*_REASONING}
    if form is None or not form.fields & wanted:
        return plain
    return ParsedReader(tokenizer, form, prompt, toolbox), None


def _read_message(said: Mapping[str, Any], end: str) -> _Message:
    """A message, if it is one.

    Raises:
        UnreadableResponse: If it is none, or has what there is no place for.
    """
    known = {"role", "content", "tool_calls", *_REASONING}
    if lost := [name for name, value in said.items() if name not in known and value not in (None, "", [], {})]:
        raise UnreadableResponse(f"there is no place for its {str(lost[0])[:80]!r}")
    texts = [_text(said, name) for name in _REASONING if said.get(name) is not None]
    calls = said.get("tool_calls") or []
    if not isinstance(calls, list) or len(calls) > _MOST_CALLS:
        raise UnreadableResponse(f"its tool_calls are no list of up to {_MOST_CALLS} calls")
    return _Message(
        _text(said, "content").removesuffix(end), texts[0] if texts else "", tuple(_call(one) for one in calls)
    )


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not _is_sendable(value):
        raise UnreadableResponse(f"its {name} is no text")
    return value


def _call(said: object) -> ToolCall:
    """A call, as messages have it or without what is around it."""
    function = said.get("function", said) if isinstance(said, Mapping) else None
    if not isinstance(function, Mapping):
        raise UnreadableResponse("a call is no object")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not _is_sendable(name):
        raise UnreadableResponse("a call has no name")
    try:
        arguments = read_written(arguments if isinstance(arguments, str) else written(arguments))
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        raise UnreadableResponse("a call's arguments are no object")
    return ToolCall(name=name, arguments=written(arguments))


def _is_sendable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
