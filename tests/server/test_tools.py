"""Tools: what the model is told of them, and what becomes of its calls."""

import json

import anthropic
import openai
import pytest

from coterie.generation import jobs
from coterie.server.prompts import from_anthropic, from_openai
from coterie.server.schemas.chat import ChatRequest
from coterie.server.schemas.fields import read
from coterie.server.schemas.messages import CountRequest
from server.conftest import Served, say

PATH = "/v1/chat/completions"
TEMPLATE = (
    "{% if tools %}Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for m in messages %}{{ m.role }}{{ ' ' ~ m.name if m.name }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like outside.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
QUESTION = {"role": "user", "content": "Is it wet?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
SAID = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


@pytest.fixture
def templated(opened, monkeypatch, serve) -> Served:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", TEMPLATE)
    return serve()


@pytest.fixture
def saying(monkeypatch) -> None:
    """A model that calls a tool, token by token."""

    say(monkeypatch, *SAID)


def ask(**more):
    return {"messages": [QUESTION], "tools": [WEATHER], "max_tokens": 4, "temperature": 0} | more


def test_the_model_is_told_of_tools_calls_and_what_came_of_them(templated: Served) -> None:
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    prompt = templated.post("/apply-template", {"messages": messages, "tools": [WEATHER]}).json["prompt"]
    first, *rest = prompt.splitlines()
    assert json.loads(first.removeprefix("Tools: ")) == WEATHER
    assert rest == [
        "user: Is it wet?",
        'assistant: <tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>',
        "tool weather: Rain.",
        "assistant: ",
    ]
    assert templated.post(PATH, ask(messages=messages)).status == 200


def test_none_tells_the_model_of_no_tools(templated: Served) -> None:
    told, untold = (templated.post(PATH, ask(tool_choice=choice)).json["usage"] for choice in ("auto", "none"))
    without = templated.post(PATH, ask(tools=None)).json["usage"]
    assert told["prompt_tokens"] > untold["prompt_tokens"] == without["prompt_tokens"]


def test_a_call_is_answered_as_clients_know_it(templated: Served, saying) -> None:
    choice = templated.post(PATH, ask()).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


def test_a_stream_has_calls_at_its_end(templated: Served, saying) -> None:
    chunks = [data["choices"][0] for _, data in templated.post(PATH, ask(stream=True)).events[:-1]]
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "I look."
    (call,) = chunks[-2]["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "weather")
    assert (chunks[-1]["finish_reason"], chunks[-1]["delta"]) == ("tool_calls", {})


def test_openai_s_client_reads_calls(templated: Served, saying) -> None:
    with openai.OpenAI(base_url=f"{templated.url}/v1", api_key="none", max_retries=0) as client:
        with client.chat.completions.stream(model="bundled", messages=[QUESTION], tools=[WEATHER]) as stream:
            message = stream.get_final_completion().choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Ulm"}
        messages = [QUESTION, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}]
        assert client.chat.completions.create(model="bundled", messages=messages, tools=[WEATHER]).choices


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "[" * 5000 + "]" * 5000])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_no_client_can_be_sent_is_text(templated: Served, monkeypatch, value: str, stream: bool) -> None:
    say(monkeypatch, f'<tool_call>{{"name": "weather", "arguments": {{"city": {value}}}}}</tool_call>')
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    asked = {"model": "bundled", "messages": [QUESTION], "tools": [tool], "max_tokens": 9, "stream": stream}
    answer = templated.post("/v1/messages", asked)
    assert answer.status == 200
    told = answer.events[-2][1]["delta"]["stop_reason"] if stream else answer.json["stop_reason"]
    assert told == "end_turn"
    found = templated.post(PATH, ask(stream=stream))
    assert found.status == 200
    assert b"tool_calls" not in found.body.replace(b"</tool_calls>", b"")
    assert b"error" not in found.body


ANTHROPIC_TOOL = {"name": "weather", "description": "What it is like outside.",
                  "input_schema": WEATHER["function"]["parameters"]}  # fmt: skip


def test_anthropic_s_client_reads_calls_and_brings_results(templated: Served, saying) -> None:
    with anthropic.Anthropic(base_url=templated.url, api_key="none", max_retries=0) as client:
        asked = {"model": "bundled", "messages": [QUESTION], "tools": [ANTHROPIC_TOOL], "max_tokens": 9}
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        for message in (whole, streamed):
            assert message.stop_reason == "tool_use"
            assert message.content[0].text == "I look."
            assert (message.content[1].name, message.content[1].input) == ("weather", {"city": "Ulm"})
        result = {"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "Rain.", "is_error": True}
        turns = [QUESTION, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(**asked | {"messages": turns}).content


def test_anthropic_s_turns_are_those_of_the_other_api() -> None:
    ours, _ = from_openai(read(ChatRequest, {"messages": [
        QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]}).messages, lambda _: None)  # fmt: skip
    theirs, _ = from_anthropic(
        read(CountRequest, {"model": "x", "messages": [
            QUESTION,
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look.", "cache_control": {"type": "ephemeral"}},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Ulm"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "Rain."}]},
        ]}).messages, None,
    )  # fmt: skip
    assert theirs == ours


def test_without_tools_the_text_stays_as_it_is(templated: Served, saying) -> None:
    message = templated.post(PATH, ask(tools=None)).json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": SAID}


def test_a_model_that_cannot_be_told_of_tools_says_so(server: Served) -> None:
    refused = server.post(PATH, ask())
    assert refused.status == 400
    assert "cannot be told of tools" in refused.error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "wether"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ],
)
def test_what_is_wrong_is_named(templated: Served, more, param: str) -> None:
    refused = templated.post(PATH, ask() | more)
    assert (refused.status, refused.error["param"]) == (400, param), refused.body


CLOSED = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 3}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
CLOSED_TOOL = {"type": "function", "function": {"name": "weather", "parameters": CLOSED}}
ONE = {"max_tokens": 60, "parallel_tool_calls": False, "tools": [CLOSED_TOOL]}


def test_a_call_that_is_demanded_is_made(templated: Served) -> None:
    """By a model that would not by itself; its arguments are kept to the tool's."""
    only = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", only):
        for stream in (False, True):
            answer = templated.post(PATH, ask(tool_choice=choice, stream=stream, **ONE))
            if stream:
                chunks = [data["choices"][0] for _, data in answer.events[:-1]]
                (call,) = next(one["delta"]["tool_calls"] for one in chunks if one["delta"].get("tool_calls"))
                assert chunks[-1]["finish_reason"] == "tool_calls"
                assert not any(one["delta"].get("content") for one in chunks)
            else:
                (found,) = answer.json["choices"]
                assert (found["finish_reason"], found["message"]["content"]) == ("tool_calls", None)
                call = found["message"]["tool_calls"][0]
            assert call["function"]["name"] == "weather"
            assert [*json.loads(call["function"]["arguments"])] == ["city"]


def test_anthropic_s_words_for_it(templated: Served) -> None:
    tools = [ANTHROPIC_TOOL | {"input_schema": CLOSED}]
    asked = {"model": "bundled", "messages": [QUESTION], "tools": tools, "max_tokens": 60, "temperature": 0}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        choice |= {"disable_parallel_tool_use": True}
        found = templated.post("/v1/messages", asked | {"tool_choice": choice}).json
        assert found["stop_reason"] == "tool_use"
        assert {block["type"] for block in found["content"]} == {"tool_use"}
        assert found["content"][0]["name"] == "weather"


def test_what_the_budget_cuts_says_so(templated: Served) -> None:
    cut = templated.post(PATH, ask(tool_choice="required", **ONE | {"max_tokens": 5})).json["choices"][0]
    assert cut["finish_reason"] == "length"
    form = {"type": "regex", "pattern": "[a-z ]{100}"}
    cut = templated.post(PATH, ask(tools=None, response_format=form)).json["choices"][0]
    assert (cut["finish_reason"], len(cut["message"]["content"]) < 100) == ("length", True)


def test_the_first_call_can_be_the_last(templated: Served, monkeypatch) -> None:
    seen = []

    class Completing(jobs.Completing):
        def __init__(self, model, tokenizer, inputs, sampling, **more) -> None:
            seen.append(sampling.stop)
            super().__init__(model, tokenizer, inputs, sampling, **more)

    monkeypatch.setattr(jobs, "Completing", Completing)
    for several in (True, False):
        assert templated.post(PATH, ask(parallel_tool_calls=several, stop="x")).status == 200
    assert seen == [("x",), ("x", "</tool_call>")]


@pytest.mark.parametrize("more", [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}])
def test_what_a_template_says_of_calls_decides(opened, monkeypatch, serve, more) -> None:
    """A form can be kept to without calls, a call not without its form."""
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", TEMPLATE.replace("tool_call>", "called>"))
    answer = serve().post(PATH, ask(**more, max_tokens=40))
    if "tool_choice" in more:
        assert (answer.status, answer.error["param"]) == (400, "tool_choice")
    else:
        assert json.loads(answer.json["choices"][0]["message"]["content"]) is not None


@pytest.mark.parametrize("parameters", [{"type": "object", "not": {}}, {"properties": {"a": {"$ref": "#/x"}}}])
def test_a_schema_that_a_call_cannot_be_kept_to_is_named(templated: Served, parameters) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    for demanded in (
        {"tool_choice": "required"},
        {"tools": [tool | {"function": tool["function"] | {"strict": True}}]},
    ):
        refused = templated.post(PATH, ask(tools=[tool]) | demanded)
        assert (refused.status, refused.error["param"]) == (400, "tools"), refused.body
    assert templated.post(PATH, ask(tools=[tool])).status == 200


def test_a_strict_tool_is_called_freely(templated: Served) -> None:
    tool = {"type": "function", "function": CLOSED_TOOL["function"] | {"strict": True}}
    plain = templated.post(PATH, ask(tools=[CLOSED_TOOL])).json
    strict = templated.post(PATH, ask(tools=[tool])).json
    assert strict["choices"] == plain["choices"]
    assert strict["usage"] == plain["usage"]  # the template is not told
