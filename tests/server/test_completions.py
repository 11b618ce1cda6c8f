"""``/v1/completions``, ``/tokenize`` and ``/detokenize``."""

import pytest

from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from server.conftest import PROMPT, Served, told_of_prompt

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def expected(opened) -> str:
    inputs = build_inputs(opened.processors, PROMPT)
    return complete(opened.model, opened.processors.tokenizer, inputs, Sampling(max_new_tokens=5, temperature=0)).text


def ask(prompt, **more):
    return {"prompt": prompt, "max_tokens": 5, "temperature": 0} | more


def test_a_text_and_its_tokens_are_continued_alike(server: Served, expected: str) -> None:
    tokens = server.post("/tokenize", {"content": PROMPT, "add_special": True}).json["tokens"]
    for prompt in (PROMPT, tokens):
        found = server.post(PATH, ask(prompt)).json
        assert found["choices"] == [{"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}]
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        assert found["usage"] == usage | {"prompt_tokens_details": told_of_prompt(5)}
        assert (found["object"], found["id"][:5]) == ("text_completion", "cmpl-")


def test_several_answers_compute_their_prompt_once(server: Served) -> None:
    def computed() -> int:
        return sum(server.engine.opened.runtime.stats().prefill_tokens.values())

    prompt = [*range(300, 340)]
    before = computed()
    found = server.post(PATH, ask(prompt, n=5, temperature=1.5, seed=3)).json
    assert computed() - before == 40
    usage = {"prompt_tokens": 40, "completion_tokens": 25, "total_tokens": 65}
    assert found["usage"] == usage | {"prompt_tokens_details": told_of_prompt(40)}
    alone = [server.post(PATH, ask(prompt, temperature=1.5, seed=3 + number)).json for number in range(5)]
    texts = [one["choices"][0]["text"] for one in alone]
    assert [one["text"] for one in found["choices"]] == texts
    assert len(set(texts)) > 1


def test_a_stream_has_the_shape_that_clients_know(server: Served, expected: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = [data for _, data in server.post(PATH, ask(PROMPT, **options)).events]
    assert done == "[DONE]"
    *pieces, last, usage = chunks
    assert "".join(chunk["choices"][0]["text"] for chunk in pieces) == expected
    assert {chunk["choices"][0]["finish_reason"] for chunk in pieces} == {None}
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)


def test_sixteen_tokens_are_the_default(server: Served) -> None:
    whole = server.post(PATH, {"prompt": PROMPT, "temperature": 0, "max_tokens": 40}).json["choices"][0]["text"]
    found = server.post(PATH, {"prompt": PROMPT, "temperature": 0}).json
    assert found["usage"]["completion_tokens"] == 16
    # Null is no limit.
    found = server.post(PATH, {"prompt": PROMPT, "temperature": 0, "max_tokens": None, "stop": whole[-40:]}).json
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] > 16


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"echo": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [[1], ["a"]]}, "prompt.1.0"),
        ({"prompt": [[1], []]}, "prompt.1"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 17, "n": 8}, "n"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_is_not_supported_or_wrong_is_named(server: Served, more, param: str) -> None:
    refused = server.post(PATH, ask(PROMPT) | more)
    assert (refused.status, refused.error["param"]) == (400, param), refused.body


def test_tokens_that_the_model_does_not_have_are_refused(server: Served) -> None:
    refused = server.post(PATH, ask([5, 8192]))
    assert refused.status == 400
    assert "8192" in refused.error["message"]


def test_tokens_are_text_and_back(server: Served) -> None:
    text = "And it came to pass, that é 中 🦉."
    tokens = server.post("/tokenize", {"content": text}).json["tokens"]
    assert all(isinstance(token, int) for token in tokens)
    assert server.post("/detokenize", {"tokens": tokens}).json == {"content": text}
    assert server.post("/tokenize", {"content": ""}).json == {"tokens": []}
    assert server.post("/detokenize", {"tokens": []}).json == {"content": ""}


@pytest.mark.parametrize("tokens", [[2**31 - 1], [8191 * 100]])
def test_tokens_without_text_break_nothing(server: Served, tokens) -> None:
    assert server.post("/detokenize", {"tokens": tokens}).status in (200, 400)
