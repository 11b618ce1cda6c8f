"""Log probabilities, several choices, several prompts: what a request may want besides a text."""

import json

import pytest

from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from coterie.server import choices as choices_module
from server.conftest import PROMPT, Served, chat, drop, read_events, told_of_prompt, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def alone(opened, text=PROMPT, **sampling):
    """What the same request gets without a server."""
    wishes = Sampling(**({"max_new_tokens": 5, "temperature": 0} | sampling))
    return complete(opened.model, opened.processors.tokenizer, build_inputs(opened.processors, text), wishes)


def ask(prompt=PROMPT, **more):
    return {"prompt": prompt, "max_tokens": 5, "temperature": 0} | more


def test_an_answer_tells_how_likely_its_tokens_were(server: Served, opened) -> None:
    expected = alone(opened, logprobs=2).logprobs
    choice = server.post(CHAT, chat(max_tokens=5, logprobs=True, top_logprobs=2)).json["choices"][0]
    told = choice["logprobs"]["content"]
    assert [one["logprob"] for one in told] == [one.logprob for one in expected]
    assert "".join(one["token"] for one in told) == choice["message"]["content"]
    assert bytes(told[0]["bytes"]).decode() == told[0]["token"]
    likeliest = told[0]["top_logprobs"][0]
    assert (likeliest["token"], likeliest["logprob"]) == (told[0]["token"], told[0]["logprob"])
    assert [len(one["top_logprobs"]) for one in told] == [2] * 5
    assert server.post(CHAT, chat(max_tokens=1, logprobs=True)).json["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ] == []  # fmt: skip
    assert server.post(CHAT, chat(max_tokens=1, logprobs=False)).json["choices"][0]["logprobs"] is None


def test_a_stream_tells_them_with_their_pieces(server: Served) -> None:
    asked = chat(logprobs=True, top_logprobs=1, stop=[" a"])
    whole = server.post(CHAT, asked).json["choices"][0]
    content = told = ""
    entries = []
    for _, data in server.post(CHAT, asked | {"stream": True}).events[:-1]:
        choice = data["choices"][0]
        content += choice["delta"].get("content") or ""
        entries += (choice["logprobs"] or {"content": []})["content"]
        told = "".join(one["token"] for one in entries)
        assert told == content
    assert content == whole["message"]["content"]
    assert entries == whole["logprobs"]["content"]


def test_a_text_s_are_in_the_shape_of_texts(server: Served, opened) -> None:
    expected = alone(opened, logprobs=3)
    choice = server.post(TEXT, ask(logprobs=3)).json["choices"][0]
    told = choice["logprobs"]
    assert told["token_logprobs"] == [one.logprob for one in expected.logprobs]
    assert "".join(told["tokens"]) == choice["text"]
    assert told["text_offset"] == [0, 1, 6, 9, 13]
    assert [max(top.values()) for top in told["top_logprobs"]] == told["token_logprobs"]  # greedy
    chunks = [data["choices"][0] for _, data in server.post(TEXT, ask(logprobs=3, stream=True)).events[:-1]]
    for name in told:
        assert [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"][name]] == told[name]
    drawn = server.post(TEXT, ask(logprobs=0, temperature=2.0, seed=2)).json["choices"][0]["logprobs"]
    assert [[*top.items()] for top in drawn["top_logprobs"]] == [
        [pair] for pair in zip(drawn["tokens"], drawn["token_logprobs"], strict=True)
    ]


@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_is_echoed_with_its_logprobs(server: Served, opened, most: int, as_ids: bool) -> None:
    """As lm-eval asks for them."""
    expected = alone(opened, prompt_logprobs=1, logprobs=1, max_new_tokens=1)
    ids = build_inputs(opened.processors, PROMPT)["input_ids"][0].tolist()
    asked = ask(ids if as_ids else PROMPT, max_tokens=most, echo=True, logprobs=1, seed=1234)
    choice = server.post(TEXT, asked).json["choices"][0]
    new = expected.text if most else ""
    assert choice["text"] == PROMPT + new
    told = choice["logprobs"]
    wanted = (*expected.prompt_logprobs, *expected.logprobs[:most])
    assert told["token_logprobs"] == [one.logprob for one in wanted]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert "".join(told["tokens"]) == PROMPT + new
    assert choice["finish_reason"] == "length"
    chunks = [data["choices"][0] for _, data in server.post(TEXT, asked | {"stream": True}).events[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == PROMPT + new
    for name in told:
        assert [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"][name]] == told[name]


def test_a_prompt_is_echoed_without_them(server: Served, opened) -> None:
    assert server.post(TEXT, ask(echo=True)).json["choices"][0]["text"] == PROMPT + alone(opened).text
    nothing = server.post(TEXT, ask(echo=True, max_tokens=0)).json
    assert nothing["choices"] == [{"index": 0, "text": PROMPT, "logprobs": None, "finish_reason": "length"}]
    assert nothing["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5, "prompt_tokens_details": told_of_prompt(5),
    }  # fmt: skip


def test_each_choice_has_a_seed_of_its_own(server: Served, opened) -> None:
    drawn = {"temperature": 1.2, "seed": 2**63 - 2}
    found = server.post(TEXT, ask(n=3, **drawn)).json
    seeds = [2**63 - 2, 2**63 - 1, 0]
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    expected = [alone(opened, temperature=1.2, seed=seed).text for seed in seeds]
    assert [one["text"] for one in found["choices"]] == expected
    assert len({*expected}) > 1
    assert found["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 15, "total_tokens": 20, "prompt_tokens_details": told_of_prompt(5),
    }  # fmt: skip
    assert len(found["coterie"]["choices"]) == 3
    texts = ["", "", ""]
    events = server.post(TEXT, ask(n=3, stream=True, stream_options={"include_usage": True}, **drawn)).events
    for _, data in events[:-2]:
        texts[data["choices"][0]["index"]] += data["choices"][0]["text"]
    assert texts == expected
    # What the prompt ends with has been kept for its answers, and is there for those who ask again.
    again = told_of_prompt(5, cached_tokens=5)
    assert events[-2][1]["usage"] == found["usage"] | {"prompt_tokens_details": again}


def test_a_conversation_has_several_answers(server: Served) -> None:
    asked = chat(n=2, temperature=1.2, seed=5)
    whole = [one["message"]["content"] for one in server.post(CHAT, asked).json["choices"]]
    events = [data["choices"][0] for _, data in server.post(CHAT, asked | {"stream": True}).events[:-1]]
    for number in range(2):
        own = [one for one in events if one["index"] == number]
        assert own[0]["delta"] == {"role": "assistant", "content": None}
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "length")
        assert "".join(one["delta"].get("content") or "" for one in own) == whole[number]
        assert sum("role" in one["delta"] for one in own) == 1


def test_several_prompts_in_one_request(server: Served, opened) -> None:
    prompts = [PROMPT, "Hello, how are you", "def __init__(self"]
    ids = [build_inputs(opened.processors, one)["input_ids"][0].tolist() for one in prompts]
    expected = [alone(opened, one).text for one in prompts]
    for several in (prompts, ids):
        found = server.post(TEXT, ask(several)).json
        assert [one["text"] for one in found["choices"]] == expected
        assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    found = server.post(TEXT, ask(ids[:2], n=2, echo=True)).json
    continued = [prompts[0] + expected[0], prompts[1] + expected[1]]
    assert [one["text"] for one in found["choices"]] == [continued[0]] * 2 + [continued[1]] * 2
    assert found["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[1])


def test_a_request_for_many_does_not_need_the_whole_queue(serve, monkeypatch) -> None:
    monkeypatch.setattr(choices_module, "AT_ONCE", 2)
    server = serve(engine={"most_waiting": 1, "parallel": 1})
    found = server.post(TEXT, ask([PROMPT] * 6, max_tokens=2))
    assert (found.status, len(found.json["choices"])) == (200, 6)


def test_one_that_is_wrong_ends_them_all(server: Served) -> None:
    refused = server.post(TEXT, ask([[5], [8192], [5]]))
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    stream = server.post(TEXT, ask([[5], [8192], [5]], stream=True))
    if stream.status == 200:
        assert '"error"' in json.dumps(stream.events[-2][1])


def test_openai_s_client_parses_a_form(server: Served) -> None:
    """Structured outputs, as its ``parse`` asks for them."""
    import openai
    from pydantic import BaseModel

    class Verdict(BaseModel):
        wet: bool

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "bundled", "messages": [{"role": "user", "content": "Rain?"}], "temperature": 0}
        done = client.chat.completions.parse(**asked, response_format=Verdict, max_tokens=60)
    assert isinstance(done.choices[0].message.parsed, Verdict)
    assert done.choices[0].finish_reason == "stop"


def test_a_client_that_leaves_leaves_all_its_choices(serve, brake) -> None:
    server = serve(engine={"parallel": 2})
    brake.hold()
    connection, response = server.begin(TEXT, ask([PROMPT] * 3, n=4, stream=True))
    assert brake.reached.wait(30)
    until(lambda: server.engine.running + server.engine.waiting > 1)  # the first may be asked for alone
    drop(connection, response)
    until(lambda: server.engine.waiting == 0)
    brake.release()
    until(lambda: server.engine.running == 0)
    assert server.post(TEXT, ask()).status == 200


def test_what_goes_wrong_in_one_choice_ends_the_stream(serve, brake) -> None:
    server = serve()
    brake.hold(after=20)
    connection, response = server.begin(TEXT, ask(n=2, stream=True, stream_options={"include_usage": True}))
    assert brake.reached.wait(30)
    brake.error = RuntimeError("x")
    brake.release()
    events = [data for _, data in read_events(response.read().decode())]
    connection.close()
    assert events[-1] == "[DONE]"
    assert "error" in events[-2]
    assert not any(event["choices"] == [] for event in events[:-2])
    until(lambda: server.engine.running + server.engine.waiting == 0)
