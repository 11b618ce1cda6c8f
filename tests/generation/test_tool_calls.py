import json

import pytest

from coterie.generation.tool_calls import CallText

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"}},
            },
        },
    }
]
JSON = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
CODER = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "<parameter=zip>\n12\n</parameter>\n</function>\n</tool_call>"
)
GLM = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>"
)


def read(text: str, size: int) -> tuple[str, list[tuple[str, object]], list[str]]:
    pieces: list[str] = []
    calls = CallText(TOOLS, pieces.append)
    for place in range(0, len(text), size):
        calls.feed(text[place : place + size])
    calls.end()
    assert "".join(pieces) == calls.text
    return calls.text, [(one.name, json.loads(one.arguments)) for one in calls.calls], pieces


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (JSON, {"city": "Köln", "days": 2}),
        (CODER, {"city": "Köln", "days": 2, "zip": "12"}),
        (GLM, {"city": "Köln", "days": 2}),
    ],
    ids=["json", "coder", "glm"],
)
def test_calls_are_taken_out_of_the_text_however_it_is_cut(call: str, arguments: dict, size: int) -> None:
    assert read(call, size)[:2] == ("", [("weather", arguments)])
    text, calls, _ = read(f"Let me see.\n\n{call}\n{call}\n", size)
    assert (text, calls) == ("Let me see.", [("weather", arguments)] * 2)
    assert read(f"{call}\nThat is it.", size)[:2] == ("That is it.", [("weather", arguments)])


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "no call\n",
        "a < b <tool <tool_cal",
        "<tool_call>",
        "<tool_call>{broken</tool_call> and more",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>["weather"]</tool_call>',
        "<tool_call>two words</tool_call>",
        "<tool_call>" + "[" * 3000 + "</tool_call>",
        "  blanks  ",
        "",
    ],
    ids=range(10),
)
def test_what_is_no_call_stays_text(text: str, size: int) -> None:
    assert read(text, size)[:2] == (text, [])


def test_text_is_handed_on_as_it_comes() -> None:
    assert read("one two three", 4)[2] == ["one", " two", " thre", "e"]


def test_a_call_that_the_end_cut_off_is_one_if_it_is_whole() -> None:
    assert read(JSON.removesuffix("</tool_call>"), 3)[1] == [("weather", {"city": "Köln", "days": 2})]
    cut = JSON[:-20]
    assert read(cut, 3)[:2] == (cut, [])


def test_arguments_may_be_a_text_or_missing() -> None:
    assert read('<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>', 9)[1] == [("weather", {})]
    assert read('<tool_call>{"name": "weather"}</tool_call>', 9)[1] == [("weather", {})]
    assert read("<tool_call>weather</tool_call>", 9)[1] == [("weather", {})]
