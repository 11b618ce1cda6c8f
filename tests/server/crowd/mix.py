"""What a crowd of clients asks: every address and shape, sound requests and such as are refused; all of them cheap."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

from server.conftest import DATA, PROMPT
from server.crowd.client import Asked
from server.test_tools import QUESTION, WEATHER

PROMPTS = (PROMPT, "In the beginning", "The king said unto", "Then shall the", "There was a man", "And Moses went")
_WORDS = ("and the people that were with him went out ", "in those days there was no king ", "the word came unto me ")
_SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
_RULES = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}


def mix() -> list[Asked]:
    """All of it, each request once."""
    asked = [*_completions(), *_chats(), *_messages(), *_responses(), *_media(), *_small(), *_refused()]
    assert len({one.name for one in asked}) == len(asked)
    return asked


def _both(name: str, path: str, value: dict[str, Any]) -> Iterator[Asked]:
    """A request, and the same as a stream."""
    yield Asked.of(name, path, value)
    yield Asked.of(f"{name}, streamed", path, value | {"stream": True})


def _completions() -> Iterator[Asked]:
    path = "/v1/completions"
    for number, prompt in enumerate(PROMPTS):
        drawn = {"temperature": 1.2, "seed": number} if number % 2 else {"temperature": 0}
        yield from _both(f"text {number}", path, {"prompt": prompt, "max_tokens": 2 + number % 3} | drawn)
    settings = {
        "three choices": {"n": 3, "max_tokens": 2, "temperature": 1, "seed": 5},
        "several prompts": {"prompt": list(PROMPTS[:3]), "max_tokens": 1, "temperature": 0},
        "token ids": {"prompt": [5, 6, 7, 8], "max_tokens": 3, "temperature": 0},
        "echo": {"echo": True, "logprobs": 2, "max_tokens": 0, "temperature": 0},
        "stop": {"stop": [" he", "e"], "max_tokens": 6, "temperature": 0},
        "penalties": {"presence_penalty": 1, "repetition_penalty": 1.3, "max_tokens": 4, "temperature": 0},
        "biases": {"frequency_penalty": 1, "logit_bias": {"11": -5}, "max_tokens": 2, "temperature": 0},
    }
    for name, more in settings.items():
        yield from _both(name, path, {"prompt": PROMPT} | more)
    # Longer than a piece: the second one finds what the first one has computed.
    long = "".join(word for word, _ in zip(cycle(_WORDS), range(70), strict=False))
    for end in ("So", "But"):
        yield from _both(f"long, {end}", path, {"prompt": long + end, "max_tokens": 1, "temperature": 0})
    counted = {"stream_options": {"include_usage": True}, "return_progress": True, "stream": True}
    yield Asked.of("progress", path, {"prompt": PROMPT, "max_tokens": 2, "temperature": 0} | counted)


def _chats() -> Iterator[Asked]:
    path = "/v1/chat/completions"
    settings: dict[str, dict[str, Any]] = {
        "likely": {"logprobs": True, "top_logprobs": 2, "max_tokens": 2},
        "expression": {"response_format": {"type": "regex", "pattern": "[ab]{3}"}},
        "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}},
        "tools": {"messages": [QUESTION], "tools": [WEATHER], "max_tokens": 3},
        "must call": {"messages": [QUESTION], "tools": [_RULES], "tool_choice": "required", "max_tokens": 24},
    }
    for name, more in settings.items():
        asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0} | more
        yield from _both(name, path, asked)


def _messages() -> Iterator[Asked]:
    asked = {"model": "tools", "max_tokens": 3, "temperature": 0, "messages": [{"role": "user", "content": PROMPT}]}
    yield from _both("message", "/v1/messages", asked)
    yield from _both("sequences", "/v1/messages", asked | {"system": "Be brief.", "stop_sequences": ["e"]})


def _responses() -> Iterator[Asked]:
    asked = {"max_output_tokens": 3, "temperature": 0}
    yield from _both("response", "/v1/responses", asked | {"input": PROMPT})
    yield from _both("items", "/v1/responses", asked | {"input": [QUESTION], "instructions": "Be brief."})


def _media() -> Iterator[Asked]:
    def encoded(name: str) -> str:
        return base64.b64encode((DATA / name).read_bytes()).decode()

    for number, name in enumerate(("sandal.png", "ankle-boot.png")):
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(name)}"}}
        asked = {"messages": [{"role": "user", "content": [picture]}], "max_tokens": 3, "temperature": 0}
        yield from _both(f"picture {number}", "/v1/chat/completions", asked)
    sound = {"type": "input_audio", "input_audio": {"data": encoded("dog.wav"), "format": "wav"}}
    asked = {"messages": [{"role": "user", "content": [sound]}], "max_tokens": 2, "temperature": 0}
    yield from _both("sound", "/v1/chat/completions", asked)


def _small() -> Iterator[Asked]:
    """What the model is not needed for."""
    yield Asked.of("tokens", "/tokenize", {"content": PROMPT})
    yield Asked.of("text of tokens", "/detokenize", {"tokens": [5, 6, 7]})
    yield Asked.of("template", "/apply-template", {"messages": [QUESTION]})
    yield Asked.of("count", "/v1/messages/count_tokens", {"model": "tools", "messages": [QUESTION]})
    yield Asked("alive", "/healthz", method="GET")
    yield Asked("models", "/v1/models", method="GET")
    yield Asked("props", "/props", method="GET")


def _refused() -> Iterator[Asked]:
    path = "/v1/chat/completions"
    chat = {"messages": [QUESTION], "max_tokens": 2}
    yield Asked("no JSON", path, b'{"messages": [')
    yield Asked.of("no such model", path, chat | {"model": "gpt-4"})
    yield Asked.of("no such field", path, chat | {"guided_json": {}})
    yield Asked.of("no number", "/v1/completions", {"prompt": PROMPT, "max_tokens": "many"})
    yield Asked.of("no token", "/v1/completions", {"prompt": [10**6], "max_tokens": 2})
    yield Asked.of("too long", "/v1/completions", {"prompt": [5] * 9000, "max_tokens": 2})
    yield Asked.of("no expression", path, chat | {"response_format": {"type": "regex", "pattern": "(("}})
    broken = {"url": "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()}
    content = [{"type": "image_url", "image_url": broken}]
    yield Asked.of("no picture", path, chat | {"messages": [{"role": "user", "content": content}]})
    yield Asked.of("no tokens", "/v1/messages", {"model": "tools", "messages": [QUESTION]})
    yield Asked.of("kept", "/v1/responses", {"input": PROMPT, "store": True})
    yield Asked("nothing there", "/v1/nothing", method="GET")
    yield Asked("wrong method", path, method="GET")
    yield Asked("no kind", path, json.dumps(chat).encode(), headers=(("Content-Type", "text/plain"),))
