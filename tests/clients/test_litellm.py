"""LiteLLM, as a library and as the strictest reader of chunks."""

import asyncio
import base64

import litellm
import pytest

from clients.conftest import BUNDLED, PROMPT, Server

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning")
USER = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def asked(server: Server) -> dict:
    return {"model": "openai/bundled", "api_base": server.v1, "api_key": "none", "messages": USER, "max_tokens": 8,
            "temperature": 0, "num_retries": 0}  # fmt: skip


def test_a_stream_says_what_the_whole_answer_says(asked) -> None:
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=USER)
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert built.usage.total_tokens == whole.usage.total_tokens


def test_its_asynchronous_half(asked) -> None:
    async def ask() -> str:
        answer = await litellm.acompletion(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    assert asyncio.run(ask()) == litellm.completion(**asked).choices[0].message.content


def test_texts_are_continued(asked) -> None:
    del asked["messages"]
    found = litellm.text_completion(**(asked | {"model": "text-completion-openai/bundled"}), prompt=PROMPT)
    assert found.usage.completion_tokens == 8


def test_anthropic_s_shape(server: Server, asked) -> None:
    more = {"model": "anthropic/bundled", "api_base": server.url}
    assert litellm.completion(**(asked | more)).choices[0].message.content == (
        litellm.completion(**asked).choices[0].message.content
    )
    streamed = litellm.completion(**(asked | more), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed)


def test_it_sees(asked) -> None:
    data = base64.b64encode((BUNDLED / "samples/sandal.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    found = litellm.completion(**(asked | {"messages": [{"role": "user", "content": [part]}]}))
    assert "sandal" in found.choices[0].message.content


def test_errors_have_their_types(asked) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**(asked | {"model": "openai/another"}))
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**(asked | {"temperature": -1}))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**(asked | {"messages": [{"role": "user", "content": "word " * 9000}]}))
