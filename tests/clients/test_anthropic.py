"""Anthropic's client."""

import base64

import anthropic
import pytest

from clients.conftest import BUNDLED, PROMPT, Server

USER = [{"role": "user", "content": PROMPT}]
GREEDY = {"extra_body": {"temperature": 0}}
"""The client does not have it any more."""
ASKED = {"model": "bundled", "messages": USER, "max_tokens": 8, **GREEDY}


@pytest.fixture(scope="module")
def client(server: Server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_stream_says_what_the_whole_answer_says(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**ASKED)
    assert (whole.stop_reason, whole.role, whole.usage.output_tokens) == ("max_tokens", "assistant", 8)
    with client.messages.stream(**ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.usage.input_tokens == whole.usage.input_tokens
    named = [kind for kind in kinds if kind not in ("text", "content_block_delta")]
    assert named == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]


def test_tokens_are_counted_as_they_are_asked(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="bundled", messages=USER).input_tokens
    assert counted == client.messages.create(**ASKED).usage.input_tokens


def test_what_ends_an_answer_is_told(client: anthropic.Anthropic) -> None:
    text = client.messages.create(**ASKED).content[0].text
    stop = text.split()[-1]
    found = client.messages.create(**ASKED, stop_sequences=[stop])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)
    assert found.content[0].text == text.partition(stop)[0]


def test_it_sees(client: anthropic.Anthropic) -> None:
    data = base64.b64encode((BUNDLED / "samples/sandal.png").read_bytes()).decode()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    found = client.messages.create(**(ASKED | {"messages": [{"role": "user", "content": [picture]}]}))
    assert "sandal" in found.content[0].text


def test_errors_have_their_types(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(**(ASKED | {"max_tokens": 0}))
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in bad.value.body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**(ASKED | {"model": "claude"}))
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.request_id


def test_tools_are_shown_and_their_results_taken(tool_server: Server) -> None:
    tool = {"name": "weather", "description": "Outside.",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}  # fmt: skip
    turns = [
        {"role": "user", "content": "Is it wet in Ulm?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}]},
    ]  # fmt: skip
    asked = {"model": "tools", "messages": turns, "tools": [tool]}
    with anthropic.Anthropic(base_url=tool_server.url, api_key="none", max_retries=0) as client:
        counted = client.messages.count_tokens(**asked).input_tokens
        assert client.messages.create(**asked, max_tokens=4, **GREEDY).usage.input_tokens == counted
        without = client.messages.count_tokens(model="tools", messages=turns).input_tokens
        assert without < counted
