"""How families of models write calls of tools: recognised by their templates, and as grammars that a call is kept to.

The grammars are in Lark's syntax as llguidance has it. What stands between marks is what the families' templates show
of earlier calls:

========  =======================================================================================================
Hermes    Qwen3 (MoE, Omni, VL), Hermes: ``<tool_call>`` with a JSON object of name and arguments
Coder     Qwen3-Coder, Qwen3.5: ``<function=name>`` and ``<parameter=name>`` within ``<tool_call>``
GLM       a name and pairs of ``<arg_key>`` and ``<arg_value>`` within ``<tool_call>``
DeepSeek  ``<｜tool▁call▁begin｜>``, name, ``<｜tool▁sep｜>``, arguments; older ones in a fence of Markdown
gpt-oss   a message of the channel ``commentary`` that is addressed to ``functions.name``
========  =======================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coterie.generation.answers import CHANNEL, CONSTRAIN, MESSAGE
from coterie.generation.grammar import BLANKS
from coterie.generation.tool_calls import (
    CLOSING,
    DEEPSEEK_CLOSING,
    DEEPSEEK_OPENING,
    DEEPSEEK_SEPARATOR,
    DEEPSEEK_TURN,
    OPENING,
)

Mark = Callable[[str], str]
"""Says how a grammar writes a text that may be a special token."""
Function = Mapping[str, Any]

_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A way to write calls.

    Attributes:
        name: Which it is.
        closing: What stands after a call; empty where the model ends by itself.
    """

    name: Literal["hermes", "coder", "glm", "deepseek", "deepseek-fenced", "gpt-oss"]
    closing: str

    def rules(self, tools: Sequence[Mapping[str, Any]], mark: Mark, *, several: bool) -> str:
        """Rules of a grammar for calls of these tools, the first of them ``calls``.

        Args:
            tools: What may be called.
            mark: How marks are written.
            several: Whether there may be more calls than one.
        """
        lines: list[str] = []
        for number, tool in enumerate(tools):
            lines += _WRITERS[self.name](f"call_{number}", tool["function"], mark)
        one = f"({' | '.join(f'call_{number}' for number in range(len(tools)))})"
        if self.name.startswith("deepseek"):
            begin, end = (mark(text) for text in DEEPSEEK_TURN)
            calls = f"{begin} {one}{' (BREAK? ' + one + ')*' if several else ''} {end}"
        else:
            calls = f"{one} (BREAK? {one})*" if several and self.name != "gpt-oss" else one
        return "\n".join([f"calls: {calls}", "BREAK: /\\n{1,2}/", *lines])


def call_format(template: str | None, known: Collection[str]) -> CallFormat | None:
    """How a model writes calls; None if that is not known.

    Args:
        template: Its chat template.
        known: Its added tokens.
    """
    shown = template or ""
    if CHANNEL in known and MESSAGE in known:
        return CallFormat("gpt-oss", "")
    if DEEPSEEK_OPENING in shown:
        return CallFormat("deepseek-fenced" if "```json" in shown else "deepseek", DEEPSEEK_CLOSING)
    if "<function=" in shown:
        return CallFormat("coder", CLOSING)
    if "<arg_key>" in shown:
        return CallFormat("glm", CLOSING)
    return CallFormat("hermes", CLOSING) if OPENING in shown else None


def _hermes(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    head = quoted(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
    yield f'{rule}: {mark(OPENING)} "\\n"? {head} {_arguments(function)} "}}" "\\n"? {mark(CLOSING)}'


def _coder(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    parts = []
    for number, (key, schema, needed) in enumerate(_parameters(function)):
        own, end = f"{rule}_{number}", "\n</parameter>\n"
        parts.append(own if needed else f"{own}?")
        yield from _pair(own, f"<parameter={key}>\n", schema, end)
    head = quoted(f"<function={function['name']}>\n")
    yield f'{rule}: {mark(OPENING)} "\\n" {head} {" ".join(parts)} "</function>\\n" {mark(CLOSING)}'


def _glm(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    parts = []
    for number, (key, schema, needed) in enumerate(_parameters(function)):
        own = f"{rule}_{number}"
        parts.append(f"({own} BREAK?)" if needed else f"({own} BREAK?)?")
        yield from _pair(own, f"<arg_key>{key}</arg_key>\n<arg_value>", schema, "</arg_value>")
    yield f"{rule}: {mark(OPENING)} {quoted(function['name'])} BREAK? {' '.join(parts)} {mark(CLOSING)}"


def _deepseek(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    begin, between, end = (mark(one) for one in (DEEPSEEK_OPENING, DEEPSEEK_SEPARATOR, DEEPSEEK_CLOSING))
    yield f"{rule}: {begin} {quoted(function['name'])} {between} {_arguments(function)} {end}"


def _deepseek_fenced(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    begin, between, end = (mark(one) for one in (DEEPSEEK_OPENING, DEEPSEEK_SEPARATOR, DEEPSEEK_CLOSING))
    head = quoted(f"{function['name']}\n```json\n")
    yield f'{rule}: {begin} "function" {between} {head} {_arguments(function)} "\\n```" {end}'


def _gpt_oss(rule: str, function: Function, mark: Mark) -> Iterator[str]:
    head = quoted(f"commentary to=functions.{function['name']} ")
    json_mark = f'{mark(CONSTRAIN)} "json"'
    yield f"{rule}: {mark(CHANNEL)} {head} {json_mark} {mark(MESSAGE)} {_arguments(function)}"


_WRITERS: dict[str, Callable[[str, Function, Mark], Iterator[str]]] = {
    "hermes": _hermes, "coder": _coder, "glm": _glm, "deepseek": _deepseek, "deepseek-fenced": _deepseek_fenced,
    "gpt-oss": _gpt_oss,
}  # fmt: skip


def _pair(rule: str, head: str, schema: Mapping[str, Any], end: str) -> Iterator[str]:
    """A parameter and its value: a text as it is, anything else as JSON."""
    if schema.get("type") == "string" and "enum" not in schema:
        yield f"{rule}: {quoted(head)} {rule}_text"
        yield f"{rule}_text[suffix={quoted(end)}]: {_TEXT}"
    elif schema.get("type") == "string":
        texts = " | ".join(quoted(str(one)) for one in schema["enum"])
        yield f"{rule}: {quoted(head)} ({texts}) {quoted(end)}"
    else:
        yield f"{rule}: {quoted(head)} {_json(schema)} {quoted(end)}"


def _parameters(function: Function) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Each parameter's name, its schema, and whether it has to be given."""
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(properties, Mapping):
        return
    needed = schema.get("required")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for key, one in properties.items():
        yield key, {**(one if isinstance(one, Mapping) else {}), **shared}, isinstance(needed, list) and key in needed


def _arguments(function: Function) -> str:
    """A JSON object of what a function takes."""
    schema = function.get("parameters")
    return _json({"type": "object", **(schema if isinstance(schema, Mapping) else {})})


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": BLANKS}}, ensure_ascii=False)


def quoted(text: str) -> str:
    """A text as grammars write it."""
    return json.dumps(text, ensure_ascii=False)
