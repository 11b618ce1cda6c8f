"""How far a prompt has been read, within a stream."""

import pytest

from server.conftest import PROMPT, Served, chat
from server.test_responses import followed

WANTED = {"stream": True, "return_progress": True}
LONG = "And it came to pass in those days. " * 12


@pytest.fixture
def reading(serve) -> Served:
    """Reads prompts in small pieces."""
    return serve(engine={"piece": 16})


def check(told: list[dict], total: int, *, cached: int = 0) -> None:
    assert len(told) > (2 if cached else 3)
    assert [one["cache"] for one in told] == [0, *[cached] * (len(told) - 1)]
    assert [set(one) for one in told] == [{"total", "cache", "processed", "time_ms"}] * len(told)
    assert {one["total"] for one in told} == {total}
    read = [one["processed"] for one in told]
    assert read == sorted(set(read))
    assert (read[0], told[0]["time_ms"], read[-1]) == (0, 0, total)
    times = [one["time_ms"] for one in told]
    assert times == sorted(times)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_tells_if_it_is_asked(reading: Served, path: str) -> None:
    asked = chat(LONG, max_tokens=2) if "chat" in path else {"prompt": LONG, "max_tokens": 2, "temperature": 0}
    chunks = [data for _, data in reading.post(path, asked | WANTED).events[:-1]]
    total = reading.post(path, asked).json["usage"]["prompt_tokens"]
    check([chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk], total)
    for chunk in chunks:
        (choice,) = chunk["choices"]
        if "prompt_progress" in chunk:
            assert choice["finish_reason"] is None
            assert not (choice["delta"] if "chat" in path else choice["text"])
    assert not any("prompt_progress" in data for _, data in reading.post(path, asked | {"stream": True}).events[:-1])


def test_what_was_computed_before_is_told_as_cached(reading: Served) -> None:
    asked = {"prompt": LONG, "max_tokens": 2, "temperature": 0}
    reading.post("/v1/completions", asked)
    longer = asked | {"prompt": LONG + "And there was no more sea. " * 6}
    chunks = [data for _, data in reading.post("/v1/completions", longer | WANTED).events[:-1]]
    usage = reading.post("/v1/completions", longer).json["usage"]
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    check(told, usage["prompt_tokens"], cached=told[-1]["cache"])
    assert 0 < told[-1]["cache"] <= usage["prompt_tokens_details"]["cached_tokens"]
    assert told[-1]["cache"] % 16 == 0


def test_responses_tell_it_as_they_go_on(reading: Served) -> None:
    asked = {"input": LONG, "max_output_tokens": 2, "temperature": 0}
    told = reading.post("/v1/responses", asked | WANTED).events
    answer = followed([(name, {k: v for k, v in data.items() if k != "prompt_progress"} if name else data)
                       for name, data in told])  # fmt: skip
    progress = [data["prompt_progress"] for name, data in told if name and "prompt_progress" in data]
    check(progress, answer.usage.input_tokens)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_only_streams_tell(server: Served, path: str) -> None:
    asked = {"/v1/completions": {"prompt": PROMPT}, "/v1/responses": {"input": PROMPT}}.get(path, chat())
    refused = server.post(path, asked | {"return_progress": True})
    assert (refused.status, refused.error["param"]) == (400, "return_progress")
