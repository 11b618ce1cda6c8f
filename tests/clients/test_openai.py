"""OpenAI's client."""

import asyncio
import base64
import json
import time
import urllib.request
from collections.abc import Iterator

import openai
import pytest

from clients.conftest import BUNDLED, KEY, PROMPT, Server

USER = [{"role": "user", "content": PROMPT}]
ASKED = {"model": "bundled", "messages": USER, "max_tokens": 8, "temperature": 0}


def client_of(server: Server, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, **({"api_key": "none", "max_retries": 0} | options))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 8
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    first, last, usage = chunks[0].choices[0], chunks[-2].choices[0], chunks[-1]
    assert (first.delta.role, first.delta.content) == ("assistant", None)
    assert (last.finish_reason, last.delta.content) == ("length", None)
    assert (usage.choices, usage.usage) == ([], whole.usage)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content


def test_the_helper_for_streams_understands_ours(client: openai.OpenAI) -> None:
    # It takes an answer that was cut for an error.
    text = client.chat.completions.create(**ASKED).choices[0].message.content
    stop = text.split()[-1]
    with client.chat.completions.stream(**ASKED, stop=stop) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.content == text.partition(stop)[0]


def test_its_asynchronous_half_asks_several_at_once(server: Server, client: openai.OpenAI) -> None:
    alone = client.chat.completions.create(**ASKED).choices[0].message.content

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as many:
            found = await asyncio.gather(*(many.chat.completions.create(**ASKED) for _ in range(6)))
        return [one.choices[0].message.content for one in found]

    assert asyncio.run(ask()) == [alone] * 6


def test_the_same_seed_is_the_same_text(client: openai.OpenAI) -> None:
    asked = ASKED | {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.system_fingerprint == second.system_fingerprint


def test_texts_and_tokens_are_continued(client: openai.OpenAI) -> None:
    asked = {"model": "bundled", "max_tokens": 8, "temperature": 0}
    text = client.completions.create(prompt=PROMPT, **asked)
    streamed = client.completions.create(prompt=PROMPT, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text


def test_it_sees_and_hears(client: openai.OpenAI) -> None:
    data = base64.b64encode((BUNDLED / "samples/sandal.png").read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    data = base64.b64encode((BUNDLED / "samples/dog.wav").read_bytes()).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    for part, answer in ((picture, "sandal"), (sound, "dog")):
        found = client.chat.completions.create(**(ASKED | {"messages": [{"role": "user", "content": [part]}]}))
        assert answer in found.choices[0].message.content


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("bundled", "model")
    assert client.models.retrieve("bundled") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 10**9), ("temperature", -1), ("max_tokens", 0), ("top_p", 2), ("stop", ["x"] * 17), ("seed", 2**63),
     ("messages", []), ("messages", [{"role": "king", "content": "x"}])],
)  # fmt: skip
def test_what_is_wrong_is_a_bad_request_with_its_field(client: openai.OpenAI, field: str, value) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**(ASKED | {field: value}))
    assert bad.value.param.startswith(field)
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id


def test_other_errors_have_their_types(client: openai.OpenAI, start) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**(ASKED | {"model": "another"}))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**(ASKED | {"messages": [{"role": "user", "content": "word " * 9000}]}))
    assert long.value.code == "context_length_exceeded"


def test_a_key_is_wanted_where_there_is_one(start, tmp_path) -> None:
    (tmp_path / "keys").write_text(KEY)
    server = start("bundled", "--api-key-file", str(tmp_path / "keys"))
    with client_of(server) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(**ASKED)
    with client_of(server, api_key=KEY) as friend:
        assert friend.chat.completions.create(**ASKED).choices


def test_who_leaves_in_mid_stream_makes_room(server: Server, client: openai.OpenAI) -> None:
    before = cancelled(server)
    with client.chat.completions.create(**(ASKED | {"max_tokens": 3000, "seed": 1}), stream=True) as stream:
        next(iter(stream))
    end = time.monotonic() + 30
    while cancelled(server) == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.chat.completions.create(**ASKED).choices


def cancelled(server: Server) -> float:
    """Requests whose clients left, by the server's own account."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("coterie_cancelled_total{"))


def test_the_log_has_no_word_of_it(server: Server, client: openai.OpenAI) -> None:
    secret = "a word that nobody else says"
    asked = client.chat.completions.create(**(ASKED | {"messages": [{"role": "user", "content": secret}]}))
    lines = []
    end = time.monotonic() + 30
    while not any(line.get("request_id") == asked._request_id for line in lines):
        assert time.monotonic() < end
        time.sleep(0.05)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert "nobody else" not in server.log.read_text()
