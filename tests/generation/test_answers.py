from types import SimpleNamespace

import pytest

from coterie.generation.answers import AnswerReader, ChannelReader, TaggedReader, ToolCall, reader_for

THINK = ("<think>", "</think>")
CHANNELS = (
    "<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant to=functions.weather<|channel|>commentary "
    '<|constrain|>json<|message|>{"place": "Oslo"}<|call|>'
)


def read(reader: AnswerReader, text: str, size: int) -> tuple[str, str]:
    """Feeds a text in pieces of this size, and checks that what is told is what is kept."""
    told: dict[str, list[str]] = {"text": [], "reasoning": []}
    reader.on_text, reader.on_reasoning = told["text"].append, told["reasoning"].append
    for place in range(0, len(text), size):
        reader.feed(text[place : place + size])
    reader.end()
    reader.end()
    assert "".join(told["text"]) == reader.text
    assert "".join(told["reasoning"]).rstrip("\n") == reader.reasoning.rstrip("\n")
    assert all(told["text"] + told["reasoning"])
    return reader.reasoning, reader.text


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("inside", "answer", "expected"),
    [
        (False, "<think>\nShe asks.\n</think>\n\nHi <b>!", ("She asks.", "Hi <b>!")),
        (False, "\n<think>a</think>b", ("a", "b")),
        (False, "<think>\n\n</think>\n\nHi", ("", "Hi")),
        (True, "She asks.</think>Hi", ("She asks.", "Hi")),
        (True, "never ends </thi", ("never ends </thi", "")),
        (False, "<thin air", ("", "<thin air")),
        (False, "  no thought, and no <think> later", ("", "  no thought, and no <think> later")),
        (False, "", ("", "")),
    ],
)
def test_reasoning_between_marks(inside, answer, expected, size) -> None:
    assert read(TaggedReader(*THINK, inside=inside), answer, size) == expected


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CHANNELS, ("They greet.", "Hello!")),
        ("<|channel|>final<|message|>Hi<|end|>", ("", "Hi")),
        ("<|message|>Hi<|return|>", ("", "Hi")),
        ("<|channel|>analysis<|message|>cut", ("cut", "")),
        ("<|channel|>final<|message|>a < b<|en", ("", "a < b<|en")),
        ("Hello as a plain text", ("", "Hello as a plain text")),
        ("<|channel|>analysis", ("", "")),
    ],
)
def test_channels(answer, expected, size) -> None:
    assert read(ChannelReader(), answer, size) == expected


@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_addressed_to_a_tool_is_a_call(size) -> None:
    reader = ChannelReader()
    assert read(reader, CALL, size) == ("Ask.", "")
    assert reader.calls == [ToolCall(name="weather", arguments='{"place": "Oslo"}')]
    assert reader.calls[0].as_message() == {
        "type": "function",
        "function": {"name": "weather", "arguments": {"place": "Oslo"}},
    }
    assert ToolCall(name="x", arguments="no JSON").as_message()["function"]["arguments"] == "no JSON"


def tokenizer(*marks: str) -> SimpleNamespace:
    return SimpleNamespace(get_added_vocab=lambda: {mark: number for number, mark in enumerate(marks)})


def test_the_reader_is_chosen_by_what_the_model_knows() -> None:
    assert type(reader_for(tokenizer("<think>", "</think>"), None, "")) is AnswerReader
    assert type(reader_for(tokenizer(), "{{ messages }}", "")) is AnswerReader
    assert isinstance(reader_for(tokenizer("<|channel|>", "<|message|>"), "{{ messages }}", ""), ChannelReader)
    opened = reader_for(tokenizer("<think>", "</think>"), "{{ messages }}", "user: hi\nassistant: <think>\n")
    assert read(opened, "a</think>b", 100) == ("a", "b")
    both = reader_for(tokenizer("[THINK]", "[/THINK]"), "{{ '</think>' }}", "")
    assert read(both, "[THINK]a[/THINK]b", 100) == ("a", "b")
    closed = reader_for(tokenizer(), "[THINK][/THINK]", "[THINK]\n[/THINK]\n")
    assert read(closed, "b", 100) == ("", "b")
