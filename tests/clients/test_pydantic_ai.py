"""Pydantic AI, which makes agents of models."""

import pytest
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from clients.conftest import BUNDLED, PROMPT, Server

pytestmark = pytest.mark.anyio
SETTINGS = {"temperature": 0.0, "max_tokens": 8}


def model_of(server: Server, name: str | None = None) -> OpenAIChatModel:
    return OpenAIChatModel(name or server.model, provider=OpenAIProvider(base_url=server.v1, api_key="none"))


async def test_a_stream_says_what_the_whole_answer_says(server: Server) -> None:
    agent = Agent(model_of(server), model_settings=SETTINGS)
    whole = await agent.run(PROMPT)
    async with agent.run_stream(PROMPT) as stream:
        assert await stream.get_output() == whole.output
    assert whole.usage.output_tokens == 8


async def test_a_conversation_goes_on(server: Server) -> None:
    agent = Agent(model_of(server), model_settings=SETTINGS, instructions="You are brief.")
    first = await agent.run(PROMPT)
    second = await agent.run("And then", message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens


async def test_it_sees(server: Server) -> None:
    agent = Agent(model_of(server), model_settings=SETTINGS)
    picture = BinaryContent((BUNDLED / "samples/sandal.png").read_bytes(), media_type="image/png")
    assert "sandal" in (await agent.run([picture])).output


async def test_errors_are_told(server: Server) -> None:
    with pytest.raises(ModelHTTPError) as missing:
        await Agent(model_of(server, "another")).run(PROMPT)
    assert missing.value.status_code == 404
