"""What a tokenizer says about answers, followed within limits."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from coterie.hf import responses
from coterie.hf.responses import UnreadableResponse, parse_response, response_form

TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant:",
    "fields": {
        "reasoning_content": {"open": "<hm>", "close": "</hm>"},
        "tool_calls": {
            "open": "<do>", "close": "</do>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<end>"},
    },
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "reasoning_content": {"type": "string", "x-regex": "<hm>(.*?)</hm>"},
        "tool_calls": {
            "type": "array", "x-regex-iterator": "<do>(.*?)</do>", "items": {"type": "object", "x-parser": "json"},
        },
        "content": {"type": "string", "x-regex": r"(?:</hm>|^(?!<hm>))(.*?)(?:<do>|<end>|$)"},
    },
}  # fmt: skip


def says_template() -> bool:
    """Which of the two the installed release reads."""
    return response_form(tokenizer(response_template=TEMPLATE)) is not None


def tokenizer(**said: Any) -> Any:
    return SimpleNamespace(**said)


def said(template: Any = TEMPLATE, schema: Any = SCHEMA) -> dict[str, Any]:
    """A tokenizer's attribute, in the form that the installed release reads."""
    return {"response_template": template} if says_template() else {"response_schema": schema}


ANSWER = '<hm>well</hm>Hello <do>{"name": "look", "arguments": {"at": "5"}}</do>'


def test_an_answer_is_taken_apart() -> None:
    form = response_form(tokenizer(**said()))
    assert form is not None
    assert form.fields >= {"content", "reasoning_content", "tool_calls"}
    message = parse_response(form, ANSWER, prompt="user: Hi\nassistant:")
    assert (message["reasoning_content"], message["content"].strip()) == ("well", "Hello")
    (call,) = message["tool_calls"]
    assert call.get("function", call) == {"name": "look", "arguments": {"at": "5"}}


def test_what_the_prompt_has_begun_goes_on() -> None:
    if says_template():
        form = response_form(tokenizer(**said()))
        assert form is not None
        message = parse_response(form, "well</hm>Hello", prompt="user: Hi\nassistant:<hm>")
        assert message == {"role": "assistant", "reasoning_content": "well", "content": "Hello"}


@pytest.mark.parametrize("value", [None, [], "text", {}, {"fields": []}, {"fields": {"content": {"open": object()}}},
                                   {"fields": {"content": {"open": "x" * 300_000}}}])  # fmt: skip
def test_what_is_no_form_is_none(value: Any) -> None:
    assert response_form(tokenizer(response_template=value, response_schema=value)) is None


CATASTROPHE = "((a|aa)+)+b"


def test_an_endless_expression_ends(monkeypatch) -> None:
    monkeypatch.setattr(responses, "_WALL_SECONDS", 0.8)
    template = TEMPLATE | {"fields": {"content": {}, "reasoning": {"open_pattern": CATASTROPHE}}}
    schema = {"type": "object", "properties": {"content": {"type": "string", "x-regex": CATASTROPHE}}}
    form = response_form(tokenizer(**said(template, schema)))
    assert form is not None
    began = time.monotonic()
    with pytest.raises(UnreadableResponse, match="more than 2 s"):
        parse_response(form, "a" * 3000, prompt="")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("template", "schema"),
    [
        ({"start_anchor": "x", "fields": {"content": {"open_pattern": "("}}},
         {"type": "object", "properties": {"content": {"type": "string", "x-regex": "("}}}),
        ({"start_anchor": "x", "fields": {"content": {"content": "magic"}}},
         {"type": "object", "properties": {"content": {"type": "magic"}}}),
        ({"start_anchor": "x", "fields": {"content": {"content": "json"}}},
         {"type": "object", "properties": {"content": {"type": "string", "x-parser": "json"}}}),
    ],
)  # fmt: skip
def test_a_broken_form_says_so_and_nothing_of_the_answer(template: Any, schema: Any) -> None:
    form = response_form(tokenizer(**said(template, schema)))
    assert form is not None
    with pytest.raises(UnreadableResponse) as caught:
        parse_response(form, "secret", prompt="hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_message_is_no_larger_than_its_answer_allows() -> None:
    template = TEMPLATE | {"defaults": {"reasoning": "x" * 200_000}}
    schema = {"type": "object", "properties": {"content": {"const": "x" * 200_000}}}
    form = response_form(tokenizer(**said(template, schema)))
    assert form is not None
    with pytest.raises(UnreadableResponse, match="far more"):
        parse_response(form, "a", prompt="")
