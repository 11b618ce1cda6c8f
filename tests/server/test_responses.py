"""``/v1/responses``: the cases of Open Responses' compliance suite, the order of events, and what is refused."""

import base64
from typing import Annotated, Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import Field, TypeAdapter

from coterie.server.response_items import from_items
from coterie.server.schemas.fields import read
from coterie.server.schemas.responses import ResponseRequest
from server.conftest import BUNDLED, PROMPT, Served, read_events, say
from server.test_tools import TEMPLATE

PATH = "/v1/responses"
EVENTS = TypeAdapter(Annotated[ResponseStreamEvent, Field(discriminator="type")])
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Ulm"}}\n</tool_call>'
SAID = "Hello there, you."
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}


@pytest.fixture
def templated(opened, monkeypatch, serve) -> Served:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", TEMPLATE)
    return serve()


def user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


def asked(*items: Any, **more: Any) -> dict[str, Any]:
    return {"model": "bundled", "input": list(items)} | more


def sound(answer: dict[str, Any]) -> Response:
    """An answer that has all that clients look for."""
    assert {"id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "output", "error",
            "previous_response_id", "instructions", "tools", "tool_choice", "truncation", "parallel_tool_calls",
            "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning",
            "usage", "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata",
            "safety_identifier", "prompt_cache_key"} <= set(answer)  # fmt: skip
    return Response.model_validate(answer, strict=True)


# The six cases of Open Responses.


def test_a_basic_text_response(server: Served, monkeypatch) -> None:
    say(monkeypatch, *SAID)
    answer = sound(server.post(PATH, asked(user("Say hello in exactly 3 words."))).json)
    assert (answer.status, answer.output_text) == ("completed", "Hello there, you.")
    assert answer.output[0].role == "assistant"
    assert answer.completed_at >= answer.created_at


def test_a_streaming_response(server: Served, monkeypatch) -> None:
    say(monkeypatch, *SAID)
    told = server.post(PATH, asked(user("Count from 1 to 5."), stream=True)).events
    final = followed(told)
    assert (final.status, final.output_text) == ("completed", "Hello there, you.")


def test_a_system_prompt(server: Served, monkeypatch) -> None:
    say(monkeypatch, *SAID)
    system = {"type": "message", "role": "system", "content": "You are a pirate. Always respond in pirate speak."}
    assert sound(server.post(PATH, asked(system, user("Say hello."))).json).status == "completed"


def test_tool_calling(templated: Served, monkeypatch) -> None:
    say(monkeypatch, *CALL)
    question = asked(user("What's the weather like in San Francisco?"), tools=[WEATHER])
    answer = sound(templated.post(PATH, question).json)
    assert [item.type for item in answer.output] == ["function_call"]
    assert (answer.output[0].name, answer.output[0].arguments) == ("get_weather", '{"location": "Ulm"}')
    streamed = followed(templated.post(PATH, question | {"stream": True}).events)
    assert [item.type for item in streamed.output] == ["function_call"]
    assert streamed.tools[0].name == "get_weather"


def picture() -> dict[str, Any]:
    data = base64.b64encode((BUNDLED / "samples/sandal.png").read_bytes()).decode()
    return user([{"type": "input_image", "image_url": f"data:image/png;base64,{data}"}])


def test_image_input(server: Served) -> None:
    answer = sound(server.post(PATH, asked(picture(), temperature=0)).json)
    assert "sandal" in answer.output_text
    assert answer.status == "completed"


def test_a_multi_turn_conversation(server: Served, monkeypatch) -> None:
    say(monkeypatch, *SAID)
    said = {"type": "message", "role": "assistant", "content": "Hello Alice! How can I help you today?"}
    turns = (user("My name is Alice."), said, user("What is my name?"))
    assert sound(server.post(PATH, asked(*turns)).json).status == "completed"


# What they do not look at.


def followed(told: list[tuple[str | None, Any]]) -> Response:
    """Builds an answer of the events of a stream, as a client does, and returns what the stream says it is."""
    assert told[-1] == (None, "[DONE]")
    events = [data for _, data in told[:-1]]
    assert [name for name, _ in told[:-1]] == [data["type"] for data in events]
    assert [data["sequence_number"] for data in events] == list(range(len(events)))
    assert [data["type"] for data in events[:2]] == ["response.created", "response.in_progress"]
    assert [data["type"] in TERMINAL for data in events] == [False] * (len(events) - 1) + [True]
    for data in events:
        EVENTS.validate_python(data, strict=True)
    built: list[dict[str, Any]] = []
    open_item = None
    for data in events[2:-1]:
        match data["type"]:
            case "response.output_item.added":
                assert open_item is None
                open_item = data["item"]
                assert (data["output_index"], open_item["status"]) == (len(built), "in_progress")
                assert not open_item.get("content")
                assert not open_item.get("arguments")
            case "response.content_part.added":
                assert data["content_index"] == len(open_item["content"])
                open_item["content"].append(data["part"])
            case "response.output_text.delta" | "response.reasoning_text.delta":
                open_item["content"][data["content_index"]]["text"] += data["delta"]
            case "response.output_text.done" | "response.reasoning_text.done":
                assert data["text"] == open_item["content"][data["content_index"]]["text"]
            case "response.content_part.done":
                assert data["part"] == open_item["content"][data["content_index"]]
            case "response.function_call_arguments.delta":
                open_item["arguments"] += data["delta"]
            case "response.function_call_arguments.done":
                assert data["arguments"] == open_item["arguments"]
            case "response.output_item.done":
                assert data["item"] == open_item | {"status": data["item"]["status"]}
                built.append(data["item"])
                open_item = None
        if "item_id" in data:
            assert data["item_id"] == open_item["id"]
    assert open_item is None
    assert built == events[-1]["response"]["output"]
    return sound(events[-1]["response"])


def test_thoughts_an_answer_and_a_call_are_three_items(templated: Served, monkeypatch, opened) -> None:
    say(monkeypatch, *f"Hm.</think>I look.{CALL}")
    thinking = TEMPLATE + "{# </think> #}{% if add_generation_prompt %}<think>\n{% endif %}"
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", thinking)
    question = asked(user("Is it wet?"), tools=[WEATHER])
    whole = sound(templated.post(PATH, question).json)
    streamed = followed(templated.post(PATH, question | {"stream": True}).events)
    for answer in (whole, streamed):
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
        assert answer.output[0].content[0].text == "Hm."
        assert answer.output_text == "I look."


def test_what_is_cut_is_incomplete(server: Served) -> None:
    question = asked(user(PROMPT), max_output_tokens=4, temperature=0)
    whole = sound(server.post(PATH, question).json)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.output[0].status == "incomplete"
    assert (whole.usage.output_tokens, whole.max_output_tokens, whole.temperature) == (4, 4, 0)
    streamed = followed(server.post(PATH, question | {"stream": True}).events)
    assert streamed.output_text == whole.output_text
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "temperature": 0}
    found = server.post("/v1/chat/completions", chat).json["choices"][0]["message"]["content"]
    assert whole.output_text == found


def test_nothing_said_is_a_message_without_text(server: Served, monkeypatch) -> None:
    say(monkeypatch)
    for stream in (False, True):
        answer = server.post(PATH, asked(user("x"), stream=stream))
        made = followed(answer.events) if stream else sound(answer.json)
        assert [item.content[0].text for item in made.output] == [""]


def test_what_fails_in_mid_stream_is_told_in_its_shape(server: Served, brake) -> None:
    brake.hold()
    connection, response = server.begin(PATH, asked(user(PROMPT), stream=True, max_output_tokens=4))
    assert brake.reached.wait(30)
    brake.error = RuntimeError("secret")
    brake.release()
    told = list(read_events(response.read().decode()))
    connection.close()
    failed = followed(told)
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert "secret" not in failed.error.message


def test_openai_s_client_builds_the_same(server: Served) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        # Its helper wants an answer that the model ends.
        question = {"model": "bundled", "input": [picture()], "temperature": 0}
        whole = client.responses.create(**question)
        with client.responses.stream(**question) as stream:
            assert stream.get_final_response().output_text == whole.output_text
        assert whole.output_text


@pytest.mark.parametrize(
    ("field", "value"),
    [("store", True), ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True),
     ("prompt", {"id": "x"})],
)  # fmt: skip
def test_what_would_have_to_be_kept_is_refused_by_name(server: Served, field: str, value: Any) -> None:
    refused = server.post(PATH, asked(user("x"), **{field: value}))
    assert (refused.status, refused.error["param"], refused.error["code"]) == (400, field, "unsupported")
    assert "keeps nothing" in refused.error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"stream_options": {}}, "stream_options"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [user([{"type": "input_file", "file_id": "x"}])]}, "input.0.content.0"),
        ({"input": [user([{"type": "input_image", "image_url": "http://169.254.169.254/"}])]},
         "input.0.content.0.image_url"),
        ({"input": [user([{"type": "input_image", "image_url": "x", "file_id": "y"}])]}, "input.0.content.0.file_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input.0.content.0"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(server: Served, more: dict[str, Any], param: str) -> None:
    refused = server.post(PATH, {"input": "x"} | more)
    assert (refused.status, refused.error["param"]) == (400, param)


def test_items_become_turns() -> None:
    items = [
        user([{"type": "input_text", "text": "Is it wet?"}]),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}'},
        {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": "noon"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Rain."}]},
        {"role": "assistant", "content": "It is."},
        {"role": "assistant", "content": "Quite."},
        {"type": "reasoning", "summary": [], "content": []},
        {"role": "developer", "content": "Be brief."},
    ]
    made, media = from_items(read(ResponseRequest, {"input": items}).input, "Be kind.")
    assert not media
    assert [turn["role"] for turn in made] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "assistant", "assistant", "system",
    ]  # fmt: skip
    answer = made[2]
    assert answer["reasoning_content"] == answer["thinking"] == "Hm."
    assert answer["content"] == [{"type": "text", "text": "I look."}]
    assert [call["function"]["name"] for call in answer["tool_calls"]] == ["weather", "clock"]
    assert answer["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
    assert [(turn["name"], turn["content"]) for turn in made[3:5]] == [("clock", "noon"), ("weather", "Rain.")]
    assert [turn["content"] for turn in made[5:7]] == ["It is.", "Quite."]
