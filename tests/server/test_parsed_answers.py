"""Models whose tokenizer says how their answers are taken apart."""

import json
import threading

import openai
import pytest

from coterie.generation import jobs
from coterie.hf import responses
from hf.test_responses import ANSWER, CATASTROPHE, TEMPLATE, said
from server.conftest import Served, chat, say, until
from server.test_tools import WEATHER

PATH = "/v1/chat/completions"
PLAIN = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)
ENDLESS = said(
    TEMPLATE | {"fields": {"content": {}, "reasoning": {"open_pattern": CATASTROPHE}}},
    {"type": "object", "properties": {"reasoning": {"type": "string", "x-regex": CATASTROPHE}}},
)


@pytest.fixture
def telling(opened, monkeypatch, serve):
    """Starts a server whose tokenizer says this."""

    def start(form=None) -> Served:
        tokenizer = opened.processors.tokenizer
        monkeypatch.setattr(tokenizer, "chat_template", PLAIN)
        for name, value in (form or said()).items():
            monkeypatch.setattr(tokenizer, name, value, raising=False)
        return serve()

    return start


def ask(**more):
    return chat(tools=[WEATHER]) | more


def test_an_answer_has_the_parts_that_its_tokenizer_finds(telling, monkeypatch) -> None:
    server = telling()
    say(monkeypatch, *ANSWER)
    choice = server.post(PATH, ask()).json["choices"][0]
    message = choice["message"]
    assert (choice["finish_reason"], message["reasoning_content"]) == ("tool_calls", "well")
    assert message["content"].strip() == "Hello"
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "5"}'}
    events = server.post("/v1/messages", {
        "model": "bundled", "max_tokens": 9, "messages": ask()["messages"], "stream": True,
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
    }).events  # fmt: skip
    kinds = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"]


def test_a_stream_has_its_parts_at_its_end(telling, monkeypatch) -> None:
    server = telling()
    say(monkeypatch, *ANSWER)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model="bundled", **(ask() | {"stream": True})))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas).strip() == "Hello"
    assert [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")] == ["well"]
    (call,) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert json.loads(call.function.arguments) == {"at": "5"}


def test_a_real_answer_is_the_text_that_it_is(telling, opened, monkeypatch, serve) -> None:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", PLAIN)
    expected = serve().post(PATH, chat(seed=3, temperature=1.0)).json["choices"][0]
    found = telling().post(PATH, chat(seed=3, temperature=1.0)).json["choices"][0]
    assert found["finish_reason"] == expected["finish_reason"]
    assert found["message"]["content"].split() == expected["message"]["content"].split()


def test_a_hostile_expression_ends_its_answer_and_holds_nobody_up(telling, monkeypatch, caplog) -> None:
    monkeypatch.setattr(responses, "_WALL_SECONDS", 0.8)
    server = telling(ENDLESS)
    say(monkeypatch, "a" * 3000)
    answer = server.post(PATH, ask())
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == "a" * 3000
    assert "more than 2 s" in caplog.text


def test_others_are_served_meanwhile_and_the_end_waits_for_nobody(telling, monkeypatch) -> None:
    server = telling()
    say(monkeypatch, *ANSWER)
    reached, released = threading.Event(), threading.Event()
    original = jobs.Job.end

    def held(job, opened):
        if job.ends_apart:
            reached.set()
            assert released.wait(60)
        return original(job, opened)

    monkeypatch.setattr(jobs.Job, "end", held)
    connection, response = server.begin(PATH, ask(stream=True))
    try:
        _others_are_served(server, reached)
    finally:
        released.set()
    text = response.read().decode()
    connection.close()
    assert "shutting down" in text
    until(lambda: not server.engine._thread.late)


def _others_are_served(server: Served, reached: threading.Event) -> None:
    assert reached.wait(30)
    assert server.engine.running == 0
    formed = chat(response_format={"type": "json_object"})
    assert server.post(PATH, formed).json["choices"][0]["message"]["content"] == ANSWER
    server.engine.cut()
