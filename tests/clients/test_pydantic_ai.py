"""Pydantic AI, which makes agents of models."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
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


class Person(BaseModel):
    name: Literal["Ada", "Grace"]
    age: int = Field(ge=10, le=99)


async def test_an_answer_has_the_form_that_is_asked_for(server: Server) -> None:
    agent = Agent(model_of(server), output_type=NativeOutput(Person), model_settings=SETTINGS | {"max_tokens": 80})
    assert isinstance((await agent.run(PROMPT)).output, Person)


async def test_an_agent_calls_a_tool_and_ends(tool_server: Server) -> None:
    # Its answer is a call, too, which the model has to make.
    agent = Agent(
        model_of(tool_server), output_type=ToolOutput(Person, name="answer"), retries=3,
        model_settings=SETTINGS | {"max_tokens": 120, "parallel_tool_calls": False},
    )  # fmt: skip
    assert isinstance((await agent.run("Who?")).output, Person)


async def test_responses_are_as_good(server: Server) -> None:
    provider = OpenAIProvider(base_url=server.v1, api_key="none")
    model = OpenAIResponsesModel("bundled", provider=provider)
    whole = await Agent(model, model_settings={"temperature": 0.0, "max_tokens": 16}).run(PROMPT)
    assert whole.output
    assert whole.usage.output_tokens == 16
