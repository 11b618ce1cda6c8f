"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

import base64
import json

import pytest

from server.conftest import DATA, PROMPT, Served, chat

PATH = "/v1/messages"


def ask(content=PROMPT, **more):
    return {
        "model": "bundled", "max_tokens": 3, "temperature": 0, "messages": [{"role": "user", "content": content}]
    } | more  # fmt: skip


def usage(tokens: int, **more: int) -> dict[str, int]:
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": tokens, "output_tokens": 0} | cache | more


def test_an_answer_is_that_of_the_other_api(server: Served) -> None:
    expected = server.post("/v1/chat/completions", chat(max_tokens=3)).json["choices"][0]["message"]["content"]
    found = server.post(PATH, ask([{"type": "text", "text": PROMPT}])).json
    assert found.pop("id").startswith("msg_")
    assert found == {
        "type": "message",
        "role": "assistant",
        "model": "bundled",
        "content": [{"type": "text", "text": expected}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": usage(5, output_tokens=3),
    }


def test_a_stream_has_the_shape_that_clients_know(server: Served) -> None:
    """A golden transcript."""
    events = server.post(PATH, ask(stream=True)).events
    message = events[0][1]["message"]
    assert message.pop("id").startswith("msg_")
    assert all(name == data["type"] for name, data in events)

    def delta(text: str):
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}

    assert [data for _, data in events] == [
        {
            "type": "message_start",
            "message": {
                "type": "message", "role": "assistant", "model": "bundled", "content": [], "stop_reason": None,
                "stop_sequence": None, "usage": usage(5),
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        delta(","),
        delta(" that"),
        delta(" he"),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": usage(5, output_tokens=3),
        },
        {"type": "message_stop"},
    ]  # fmt: skip


def test_it_is_said_which_text_ended_an_answer(server: Served) -> None:
    found = server.post(PATH, ask(max_tokens=20, stop_sequences=["zzz", " had"])).json
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", " had")
    events = server.post(PATH, ask(max_tokens=20, stop_sequences=[" had"], stream=True)).events
    assert events[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " had"}


def test_the_model_may_end_by_itself(server: Served) -> None:
    url = {"type": "base64", "media_type": "image/png", "data": encoded("sandal.png")}
    found = server.post(PATH, ask([{"type": "image", "source": url}], max_tokens=40)).json
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    assert found["usage"]["input_tokens"] > 5


def encoded(name: str) -> str:
    return base64.b64encode((DATA / name).read_bytes()).decode()


def test_the_system_comes_first(server: Served) -> None:
    for system in ("And it", [{"type": "text", "text": "And it"}]):
        found = server.post(PATH, ask("came to pass", system=system)).json
        assert found["usage"]["input_tokens"] == server.post(f"{PATH}/count_tokens", {
            "model": "bundled", "system": system, "messages": [{"role": "user", "content": "came to pass"}],
        }).json["input_tokens"]  # fmt: skip


def test_earlier_thoughts_are_taken_back(server: Served) -> None:
    turn = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""},
                                             {"type": "text", "text": "it came"}]}  # fmt: skip
    messages = [{"role": "user", "content": "And"}, turn, {"role": "user", "content": "to pass"}]
    assert server.post(PATH, ask() | {"messages": messages}).status == 200


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"model": None}, "model"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema is missing"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there are no tools"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: there are no tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is for"),
        ({"tool_choice": {"type": "auto", "name": "x"}}, "tool_choice.name is for"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking."),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
         "messages.0.content.0.source.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
         "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages.0.content.0"),
        ({"foo": 1}, "foo is not a field"),
        ({"seed": 1}, "seed is not a field"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, more, message: str) -> None:
    refused = server.post(PATH, ask() | more)
    assert (refused.status, refused.json["type"]) == (400, "error")
    assert refused.error["type"] == "invalid_request_error"
    assert message in refused.error["message"]
    assert refused.json["request_id"] == refused.headers["request-id"]


def test_tokens_of_pictures_are_those_that_are_read(server: Served) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": encoded("sandal.png")}
    asked = ask(
        [{"type": "text", "text": "And"}, {"type": "image", "source": source}, {"type": "image", "source": source}]
    )
    counted = server.post(f"{PATH}/count_tokens", {name: asked[name] for name in ("model", "messages")}).json
    assert counted == {"input_tokens": server.post(PATH, asked).json["usage"]["input_tokens"]}
    source["data"] = encoded("sandal.png")[:400]
    refused = server.post(f"{PATH}/count_tokens", {"model": "bundled", "messages": asked["messages"]})
    assert refused.status == 400
    assert "messages.0.content.1.source.data" in refused.error["message"]


def test_what_was_kept_of_a_prompt_is_told(server: Served) -> None:
    """A prompt is the sum of three: what was read from the cache, what was kept, and the rest."""
    server.engine.prefixes.clear()
    asked = ask(" ".join(["and it came to be told"] * 200), max_tokens=1)
    total = server.post(f"{PATH}/count_tokens", {name: asked[name] for name in ("model", "messages")}).json[
        "input_tokens"
    ]
    whole = total // 512 * 512
    assert 512 <= whole < total
    first = server.post(PATH, asked).json["usage"]
    assert first == usage(total - whole, output_tokens=1, cache_creation_input_tokens=whole)
    events = server.post(PATH, asked | {"stream": True}).events
    began = events[0][1]["message"]["usage"]
    assert sum(began[name] for name in usage(0)) == total
    assert events[-2][1]["usage"] == usage(total - whole, output_tokens=1, cache_read_input_tokens=whole)


def test_another_model_is_refused(server: Served) -> None:
    refused = server.post(PATH, ask(model="claude"))
    assert (refused.status, refused.error["type"]) == (404, "not_found_error")


def test_an_error_within_a_stream_is_an_event(server: Served, brake) -> None:
    brake.hold()
    connection, response = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    brake.error = RuntimeError("x")
    brake.release()
    text = response.read().decode()
    connection.close()
    assert 'event: error\ndata: {"type": "error", "error": {"type": "api_error"' in text


def test_an_answer_has_its_form(server: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [5]}}, "required": ["a"], "additionalProperties": False}
    form = {"output_config": {"format": {"type": "json_schema", "schema": schema}}, "service_tier": "auto"}
    message = server.post(PATH, ask(max_tokens=60, **form)).json
    assert json.loads(message["content"][0]["text"]) == {"a": 5}
    assert message["stop_reason"] == "end_turn"
    refused = server.post(PATH, ask(output_config={"effort": "low"}))
    assert (refused.status, "output_config.effort" in refused.error["message"]) == (400, True)


def test_a_template_is_told_not_to_think(opened, monkeypatch, serve) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ ' think a lot' if enable_thinking is not defined }}"
    )
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", template)
    server = serve()
    tokens = [
        server.post("/v1/messages/count_tokens", {"model": "bundled", "messages": ask()["messages"], **more}).json
        for more in ({}, {"thinking": {"type": "disabled"}})
    ]
    assert tokens[0]["input_tokens"] > tokens[1]["input_tokens"]
