"""Tokens of a conversation, before it is answered."""

import openai
import pytest

from server.conftest import PROMPT, Served, chat
from server.test_media import encoded, picture, with_url
from server.test_responses import WEATHER
from server.test_tools import TEMPLATE, ask


def test_as_many_are_counted_as_are_read(server: Served) -> None:
    counted = server.post("/v1/chat/completions/input_tokens", chat()).json
    assert counted["object"] == "response.input_tokens"
    assert counted["input_tokens"] == server.post("/v1/chat/completions", chat()).json["usage"]["prompt_tokens"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.responses.input_tokens.count(model="bundled", input=PROMPT, instructions="Be brief.")
        answer = client.responses.create(
            model="bundled", input=PROMPT, instructions="Be brief.", max_output_tokens=1, temperature=0
        )
    assert found.input_tokens == answer.usage.input_tokens


def test_tools_count(opened, monkeypatch, serve) -> None:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", TEMPLATE)
    served = serve()
    for path, asked in (
        ("/v1/chat/completions", ask()),
        ("/v1/responses", {"input": "Is it wet?", "tools": [WEATHER]}),
    ):
        told = served.post(f"{path}/input_tokens", asked).json["input_tokens"]
        assert told > served.post(f"{path}/input_tokens", asked | {"tools": []}).json["input_tokens"]


def test_a_tool_is_shown_in_the_same_way_whoever_asks(opened, monkeypatch, serve) -> None:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", TEMPLATE)
    served = serve()
    flat = {name: value for name, value in WEATHER.items() if name != "type"}
    asked = {"messages": [{"role": "user", "content": "Is it wet?"}], "tools": [{"type": "function", "function": flat}]}
    of_chat = served.post("/v1/chat/completions/input_tokens", asked).json
    assert of_chat == served.post("/v1/responses/input_tokens", {"input": "Is it wet?", "tools": [WEATHER]}).json


@pytest.mark.parametrize("path", ["/v1/chat/completions/input_tokens", "/v1/responses/input_tokens"])
def test_pictures_are_not_counted(server: Served, path: str) -> None:
    url = f"data:image/png;base64,{encoded(picture('PNG'))}"
    content = [{"type": "input_image", "image_url": url}]
    asked = {"input": [{"role": "user", "content": content}]} if "responses" in path else with_url(url)
    refused = server.post(path, asked)
    assert (refused.status, refused.error["code"]) == (400, "unsupported")
