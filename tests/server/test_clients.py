"""The clients that people have: openai's and anthropic's own."""

import base64

import anthropic
import openai
import pytest

from server.conftest import DATA, PROMPT, Served, chat

GREEDY = {"temperature": 0}
"""Anthropic's client does not have it any more."""
USER = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def of_openai(server: Served):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def of_anthropic(server: Served):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def expected(server: Served) -> str:
    return server.post("/v1/chat/completions", chat()).json["choices"][0]["message"]["content"]


def test_openai_whole_and_streamed(of_openai, expected: str) -> None:
    asked = {"model": "bundled", "messages": USER, "max_tokens": 6, "temperature": 0}
    whole = of_openai.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == 6
    chunks = list(of_openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with of_openai.chat.completions.stream(**asked, stop=" been") as stream:
        assert stream.get_final_completion().choices[0].message.content == ", that he had"


def test_openai_completions_models_and_media(of_openai, expected: str) -> None:
    found = of_openai.completions.create(model="bundled", prompt=PROMPT, max_tokens=6, temperature=0)
    assert found.choices[0].text == expected
    assert [model.id for model in of_openai.models.list()] == ["bundled"]
    assert of_openai.models.retrieve("bundled").owned_by == "coterie"
    sound = base64.b64encode((DATA / "dog.wav").read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    heard = of_openai.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": [part]}], temperature=0, max_completion_tokens=20
    )
    assert heard.choices[0].message.content == "dog"
    assert heard.choices[0].finish_reason == "stop"


def test_openai_errors(of_openai, serve, brake) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        of_openai.chat.completions.create(
            model="bundled", messages=USER, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
        )
    assert (bad.value.param, bad.value.code) == ("modalities", "unsupported")
    with pytest.raises(openai.NotFoundError):
        of_openai.chat.completions.create(model="gpt-4", messages=USER)
    brake.error = RuntimeError("x")
    with pytest.raises(openai.APIError):
        list(of_openai.chat.completions.create(model="bundled", messages=USER, stream=True, max_tokens=3))


def test_openai_retries_when_the_queue_is_full(serve, brake) -> None:
    server = serve(engine={"parallel": 1, "most_waiting": 0})
    brake.hold()
    first = server.begin("/v1/chat/completions", chat(stream=True))
    assert brake.reached.wait(30)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="bundled", messages=USER)
        brake.release()
        first[1].read()
        assert client.with_options(max_retries=5).chat.completions.create(
            model="bundled", messages=USER, max_tokens=1
        ).choices  # fmt: skip


def test_anthropic_whole_streamed_and_counted(of_anthropic, expected: str) -> None:
    asked = {"model": "bundled", "messages": USER, "max_tokens": 6, "extra_body": GREEDY}
    whole = of_anthropic.messages.create(**asked)
    assert whole.content[0].text == expected
    assert whole.stop_reason == "max_tokens"
    with of_anthropic.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == expected
        final = stream.get_final_message()
    assert (final.usage.input_tokens, final.usage.output_tokens) == (5, 6)
    assert of_anthropic.messages.count_tokens(model="bundled", messages=USER).input_tokens == 5


def test_anthropic_pings_are_no_trouble(serve, brake, expected: str) -> None:
    server = serve(ping_s=0.02)
    brake.hold()
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked = {"model": "bundled", "messages": USER, "max_tokens": 6, "extra_body": GREEDY}
        with client.messages.stream(**asked) as stream:
            assert brake.reached.wait(30)
            brake.released.wait(0.2)
            brake.release()
            assert "".join(stream.text_stream) == expected


def test_anthropic_errors(of_anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        of_anthropic.messages.create(model="bundled", messages=USER, max_tokens=5, stop_sequences=[""])
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        of_anthropic.messages.create(model="claude", messages=USER, max_tokens=5)
