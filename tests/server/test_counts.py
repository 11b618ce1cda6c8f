"""Tokens of a conversation, before it is answered."""

from typing import Any

import openai
import pytest

from server.conftest import DATA, PROMPT, Served, chat
from server.test_media import encoded, picture, with_sound, with_url
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


def pictured(path: str, data: str) -> dict[str, Any]:
    url = f"data:image/png;base64,{data}"
    if "responses" not in path:
        return with_url(url)
    content = [{"type": "input_text", "text": PROMPT}, {"type": "input_image", "image_url": url}]
    return {"input": [{"role": "user", "content": content}], "max_output_tokens": 1}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_pictures_count_for_what_is_read_of_them(server: Served, path: str) -> None:
    asked = pictured(path, encoded(picture("PNG")))
    failed = server.get("/metrics").body.count(b"coterie_request_failed_total{")
    told = server.post(f"{path}/input_tokens", asked).json["input_tokens"]
    found = server.post(path, asked).json["usage"]
    assert told == found.get("prompt_tokens", found.get("input_tokens"))
    assert server.get("/metrics").body.count(b"coterie_request_failed_total{") == failed
    if "prompt_tokens" in found:
        parts = found["prompt_tokens_details"]
        assert parts["image_tokens"] > 0
        assert parts["image_tokens"] + parts["text_tokens"] == told
    refused = server.post(f"{path}/input_tokens", pictured(path, encoded(picture("PNG")[:60])))
    assert (refused.status, ".image_url" in refused.error["param"]) == (400, True)


def test_sounds_count_for_what_is_read_of_them(server: Served) -> None:
    asked = with_sound(encoded((DATA / "dog.wav").read_bytes()))
    told = server.post("/v1/chat/completions/input_tokens", asked).json["input_tokens"]
    found = server.post("/v1/chat/completions", asked).json["usage"]
    parts = found["prompt_tokens_details"]
    assert (told, parts["audio_tokens"] > 0, parts["image_tokens"]) == (found["prompt_tokens"], True, 0)
    assert parts["audio_tokens"] + parts["text_tokens"] == told
