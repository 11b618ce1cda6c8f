"""Answers in a form that only their tokenizer knows."""

from types import SimpleNamespace
from typing import Any

import pytest

from coterie.generation import parsed_answers
from coterie.generation.answers import AnswerReader, ChannelReader, TaggedReader, ToolCall
from coterie.generation.parsed_answers import ParsedReader, reading
from coterie.generation.tool_calls import CallText
from coterie.generation.toolbox import Toolbox
from coterie.hf.responses import UnreadableResponse
from hf.test_responses import ANSWER, SCHEMA, TEMPLATE, said

TOOLBOX = Toolbox(tools=({"type": "function", "function": {"name": "look", "parameters": {}}},))
PLAIN = "{{ messages }}{{ tools }}"


def tokenizer(*added: str, **more: Any) -> Any:
    tokens = [SimpleNamespace(content=text, special=True) for text in ("<end>", *added)]
    known = {token.content: number for number, token in enumerate(tokens)}
    return SimpleNamespace(
        get_added_vocab=lambda: known, added_tokens_decoder=dict(enumerate(tokens)), eos_token="<end>", **more
    )


@pytest.mark.parametrize(
    ("made", "template", "toolbox", "formed", "kind"),
    [
        (tokenizer(**said()), PLAIN, TOOLBOX, False, ParsedReader),
        (tokenizer(**said()), PLAIN, Toolbox(), False, ParsedReader),  # for the thoughts
        (tokenizer(**said()), PLAIN, TOOLBOX, True, AnswerReader),
        (tokenizer(**said()), None, TOOLBOX, False, AnswerReader),
        (tokenizer(), PLAIN, TOOLBOX, False, AnswerReader),
        (tokenizer(**said()), f"{PLAIN}<tool_call>", TOOLBOX, False, AnswerReader),
        (tokenizer("<|channel|>", "<|message|>", **said()), PLAIN, TOOLBOX, False, ChannelReader),
        (tokenizer("<think>", "</think>", **said()), PLAIN, Toolbox(), False, TaggedReader),
        (tokenizer("<think>", "</think>", **said()), PLAIN, TOOLBOX, False, ParsedReader),
        (tokenizer(**said({"start_anchor": "x", "fields": {"content": {}}}, {"properties": {"content": {}}})),
         PLAIN, TOOLBOX, False, AnswerReader),
    ],
)  # fmt: skip
def test_whoever_knows_reads(made, template, toolbox: Toolbox, formed: bool, kind: type) -> None:
    reader, calls = reading(made, template, "user: Hi", toolbox, formed=formed)
    assert type(reader) is kind
    assert isinstance(calls, CallText) == bool(toolbox.tools and kind is not ParsedReader)


def read(reader: AnswerReader, *pieces: str) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    reader.on_text = lambda piece: told.append(("text", piece))
    reader.on_reasoning = lambda piece: told.append(("reasoning", piece))
    for piece in pieces:
        reader.feed(piece)
    assert told == []
    reader.end()
    reader.end()
    return told


def made(toolbox: Toolbox = TOOLBOX, **more: Any) -> ParsedReader:
    reader, _ = reading(tokenizer(**(more or said())), PLAIN, "user: Hi\nassistant:", toolbox)
    assert isinstance(reader, ParsedReader)
    return reader


def test_an_answer_is_told_when_it_is_whole() -> None:
    reader = made()
    told = read(reader, *ANSWER, "<end>")
    assert [(part, text.strip()) for part, text in told] == [("reasoning", "well"), ("text", "Hello")]
    assert reader.calls == [ToolCall(name="look", arguments='{"at": "5"}')]


def test_one_call_is_all_that_may_be_made() -> None:
    call = '<do>{"name": "look", "arguments": {}}</do>'
    assert len(made_calls(TOOLBOX, call)) == 2
    assert len(made_calls(Toolbox(tools=TOOLBOX.tools, several=False), call)) == 1


def made_calls(toolbox: Toolbox, call: str) -> list[ToolCall]:
    reader = made(toolbox)
    read(reader, call, call)
    return reader.calls


MESSAGES: list[Any] = [
    {"content": 5}, {"content": ["text"]}, {"content": "\ud800"}, {"reasoning_content": {}}, {"tool_calls": "x"},
    {"tool_calls": {"name": "look"}}, {"tool_calls": ["look"]}, {"tool_calls": [{"function": {"name": 5}}]},
    {"tool_calls": [{"function": {"name": ""}}]}, {"tool_calls": [{"name": "look", "arguments": "no JSON"}]},
    {"tool_calls": [{"name": "look", "arguments": [1]}]}, {"tool_calls": [{"name": "look", "arguments": '{"a": NaN}'}]},
    {"tool_calls": [{"name": "x" * 300}]}, {"tool_calls": [{"name": "look"}] * 200}, {"content": "a", "citations": "b"},
    {}, {"content": "", "tool_calls": []}, {"content": None, "role": "assistant"},
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES)
def test_what_has_wrong_types_or_lost_something_is_text(monkeypatch, caplog, message: dict[str, Any]) -> None:
    monkeypatch.setattr(parsed_answers, "parse_response", lambda *_, **__: message)
    reader = made()
    assert read(reader, "<hm>Hel", "lo<end>") == [("text", "<hm>Hello")]
    assert reader.calls == []
    assert "An answer stays one text" in caplog.text
    assert "Hello" not in caplog.text


def test_arguments_may_be_a_text_of_json(monkeypatch) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at":5}'}}
    monkeypatch.setattr(parsed_answers, "parse_response", lambda *_, **__: {"tool_calls": [call], "content": None})
    reader = made()
    assert read(reader, "x") == []
    assert reader.calls == [ToolCall(name="look", arguments='{"at": 5}')]


def test_what_cannot_be_followed_changes_nothing(monkeypatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise UnreadableResponse("it takes more than 2 s")

    monkeypatch.setattr(parsed_answers, "parse_response", fails)
    assert read(made(), "Hello<end>") == [("text", "Hello")]


def test_an_answer_of_nothing_is_nothing() -> None:
    assert read(made()) == []


def test_forms_are_those_of_the_installed_release() -> None:
    assert said() in ({"response_template": TEMPLATE}, {"response_schema": SCHEMA})
