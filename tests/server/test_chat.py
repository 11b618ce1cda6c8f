"""``/v1/chat/completions``."""

import base64
import json

import pytest

from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.completion import complete
from coterie.generation.grammar import Grammar
from coterie.generation.sampling import Sampling
from server.conftest import DATA, PROMPT, Served, chat, say, told_of_prompt

PATH = "/v1/chat/completions"


def alone(opened, text=PROMPT, *, images=(), audios=(), **sampling):
    """What the same request gets without a server."""
    wishes = Sampling(**({"max_new_tokens": 6, "temperature": 0} | sampling))
    inputs = chat_inputs(opened.processors, [user_message(text, images=images, audios=audios)])
    return complete(opened.model, opened.processors.tokenizer, inputs, wishes)


def test_an_answer_is_that_of_complete(server: Served, opened) -> None:
    expected = alone(opened)
    answer = server.post(PATH, chat())
    assert answer.status == 200
    found = answer.json
    assert found["object"] == "chat.completion"
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected.text},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert found["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": expected.prompt_tokens + 6,
        "prompt_tokens_details": told_of_prompt(5),
    }
    assert found["model"] == "bundled"
    assert found["id"].startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({"temperature": 1.3, "seed": 7}, {"temperature": 1.3, "seed": 7}),
        ({"temperature": 1.1, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 3},
         {"temperature": 1.1, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 3}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"stop": " had"}, {"stop": (" had",)}),
        ({"stop": ["zzz", " been"]}, {"stop": ("zzz", " been")}),
        ({"logit_bias": {"21": -100}}, {"logit_bias": {21: -100}}),
        ({"presence_penalty": 1, "frequency_penalty": 0.5}, {"presence_penalty": 1, "frequency_penalty": 0.5}),
        ({"stop_token_ids": [406]}, {"stop_token_ids": (406,)}),
        ({"min_tokens": 3, "logit_bias": {"0": 100}}, {"min_new_tokens": 3, "logit_bias": {0: 100}}),
        ({"ignore_eos": True, "logit_bias": {"0": 100}}, {"ignore_eos": True, "logit_bias": {0: 100}}),
        ({"typical_p": 0.5, "temperature": 1, "seed": 3}, {"typical_p": 0.5, "temperature": 1, "seed": 3}),
        ({"response_format": {"type": "json_object"}, "max_tokens": 30},
         {"grammar": Grammar.json_object(), "max_new_tokens": 30}),
        ({"response_format": {"type": "regex", "pattern": "(yes|no)!"}}, {"grammar": Grammar.regex("(yes|no)!")}),
    ],
)  # fmt: skip
def test_what_is_asked_is_done(server: Served, opened, asked, sampling) -> None:
    expected = alone(opened, **sampling)
    whole = server.post(PATH, chat(**asked)).json
    assert whole["choices"][0]["message"]["content"] == expected.text
    streamed = server.post(PATH, chat(**asked, stream=True)).events
    assert said(streamed) == expected.text
    assert whole["choices"][0]["finish_reason"] == finish(streamed) == expected.finish_reason


def said(events) -> str:
    return "".join(data["choices"][0]["delta"].get("content") or "" for _, data in events[:-1] if data["choices"])


def finish(events) -> str:
    return next(data["choices"][0]["finish_reason"] for _, data in reversed(events[:-1]) if data["choices"])


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_the_shape_that_clients_know(server: Served, usage: bool) -> None:
    """A golden transcript: the role first, the reason last and without content, what it took, [DONE]."""
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = server.post(PATH, chat(max_tokens=3, stream=True, **options))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [data for _, data in answer.events]
    assert events.pop() == "[DONE]"
    same = {key: events[0][key] for key in ("id", "object", "created", "model", "system_fingerprint")}
    assert same["object"] == "chat.completion.chunk"
    assert same["id"].startswith("chatcmpl-")
    assert all({key: event[key] for key in same} == same for event in events)
    rest = [{key: value for key, value in event.items() if key not in same} for event in events]
    none = {"usage": None} if usage else {}

    def chunk(delta, finish=None):
        return {"choices": [{"index": 0, "logprobs": None, "finish_reason": finish, "delta": delta}], **none}

    golden = [
        chunk({"role": "assistant", "content": None}),
        chunk({"content": ","}),
        chunk({"content": " that"}),
        chunk({"content": " he"}),
        chunk({}, "length") | {"coterie": {"finish_reason": "length"}},
    ]
    if usage:
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        golden.append({"choices": [], "usage": usage | {"prompt_tokens_details": told_of_prompt(5)}})
    assert rest == golden


def test_pictures_and_sounds_are_seen_and_heard(server: Served, opened) -> None:
    picture, sound = DATA / "sandal.png", DATA / "dog.wav"
    expected = alone(opened, "", audios=[sound], max_new_tokens=20)
    part = {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "wav"}}
    assert server.post(PATH, chat(max_tokens=20) | user([part])).json["choices"][0]["message"]["content"] == "dog"
    assert expected.text == "dog"
    expected = alone(opened, "", images=[picture], max_new_tokens=20)
    url = f"data:image/png;base64,{encoded(picture)}"
    part = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    found = server.post(PATH, chat(max_tokens=20) | user([part])).json
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["prompt_tokens"] == expected.prompt_tokens


def user(content) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


def encoded(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_a_conversation_is_read_as_a_whole(server: Served, opened) -> None:
    messages = [
        {"role": "system", "content": "And it"},
        {"role": "user", "content": [{"type": "text", "text": "came to"}]},
        {"role": "assistant", "content": "pass"},
        {"role": "user", "content": ", that"},
    ]
    expected = complete(
        opened.model,
        opened.processors.tokenizer,
        chat_inputs(opened.processors, messages),
        Sampling(max_new_tokens=6, temperature=0),
    )
    assert server.post(PATH, chat() | {"messages": messages}).json["choices"][0]["message"]["content"] == expected.text
    messages[0]["role"] = "developer"
    assert server.post(PATH, chat() | {"messages": messages}).json["choices"][0]["message"]["content"] == expected.text


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("modalities", ["text", "audio"], ["text"]),
        ("store", True, False),
        ("verbosity", "low", ...),
        ("chat_template", "{{ 1 }}", ...),
        ("best_of", 2, ...),
        ("guided_json", {}, ...),
        ("grammar", "start: x", ...),
        ("dry_multiplier", 1.0, ...),
        ("use_beam_search", True, ...),
        ("no_such_thing", 1, ...),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server: Served, field: str, value, neutral) -> None:
    refused = server.post(PATH, chat(**{field: value}))
    assert (refused.status, refused.error["param"], refused.error["type"]) == (400, field, "invalid_request_error")
    assert refused.error["code"] == "unsupported"
    if neutral is not ...:
        assert server.post(PATH, chat(max_tokens=1, **{field: neutral})).status == 200


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 2**63}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"typical_p": 0}, "typical_p"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"logit_bias": {"8192": 1}}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 7}, "min_tokens"),
        ({"stop_token_ids": [8192]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [5] * 129}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "sound"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": {"type": 123}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, "response_format"),
        ({"response_format": {"type": "regex", "pattern": "["}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "start: x"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens"),
        ({"seed": -2}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 2**40}, "max_completion_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 257]}, "stop.0"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": [{"content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages.0.content.0.video_url"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"user": 5}, "user"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, more, param: str) -> None:
    refused = server.post(PATH, chat() | more)
    assert (refused.status, refused.error["param"]) == (400, param), refused.body
    assert set(refused.error) == {"message", "type", "param", "code"}


def test_messages_are_needed(server: Served) -> None:
    refused = server.post(PATH, {"model": "bundled"})
    assert (refused.status, refused.error["param"]) == (400, "messages")


def test_a_prompt_that_is_too_long_is_told_apart(server: Served) -> None:
    for stream in (False, True):
        refused = server.post(PATH, chat("word " * 5000, stream=stream))
        if refused.status == 200:  # told within the stream, where tokenising took longer than headers may
            assert refused.events[-2][1]["error"]["code"] == "context_length_exceeded"
        else:
            assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")


def test_another_model_is_refused(server: Served) -> None:
    refused = server.post(PATH, chat(model="gpt-4"))
    assert (refused.status, refused.error["code"], refused.error["param"]) == (404, "model_not_found", "model")
    assert server.post(PATH, chat(model="bundled", max_tokens=1)).status == 200


def test_a_model_has_several_names(serve) -> None:
    server = serve(names=["one", "claude-x"])
    assert server.post(PATH, chat(model="claude-x", max_tokens=1)).json["model"] == "one"
    listed = server.get("/v1/models").json["data"]
    assert [model["id"] for model in listed] == ["one", "claude-x"]
    assert listed[0]["architecture"] == {
        "input_modalities": ["text", "image", "audio", "video"], "output_modalities": ["text"],
    }  # fmt: skip
    assert listed[0]["max_model_len"] == 4096
    assert listed[0]["prompt_cache"]
    assert server.get("/v1/models/claude-x").json["id"] == "claude-x"
    assert server.get("/v1/models/two").status == 404


def test_an_error_within_a_stream_is_json(server: Served, brake) -> None:
    brake.hold()
    connection, response = server.begin(PATH, chat(stream=True))
    assert response.status == 200
    assert brake.reached.wait(30)
    brake.error = RuntimeError('broken "quotes"')
    brake.release()
    events = response.read().decode().split("\n\n")
    connection.close()
    error = next(json.loads(event[len("data: ") :]) for event in events if '"error"' in event)
    assert error["error"]["type"] == "server_error"
    assert "quotes" not in error["error"]["message"]
    assert events[-2] == "data: [DONE]"
    assert server.post(PATH, chat(max_tokens=1)).status == 200


def test_the_template_is_shown(server: Served) -> None:
    assert server.post("/apply-template", {"messages": [{"role": "user", "content": "x"}]}).json == {"prompt": "x"}
    refused = server.post("/apply-template", {"messages": [{"role": "user", "content": "x"}], "template": "{{ 1 }}"})
    assert (refused.status, refused.error["param"]) == (400, "template")


THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>' if enable_thinking else '' }}"
    " {{ reasoning_effort }}"
)


@pytest.fixture
def thinking(opened, monkeypatch, serve) -> Served:
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", THINKING)
    return serve()


def test_a_template_is_told_what_it_asks_for(thinking: Served) -> None:
    def tokens(**more) -> int:
        return thinking.post(PATH, chat(max_tokens=1, **more)).json["usage"]["prompt_tokens"]

    plain = tokens()
    assert tokens(chat_template_kwargs={"enable_thinking": True}) > plain
    assert tokens(chat_template_kwargs={"enable_thinking": False}) == plain
    assert tokens(reasoning_effort="very much of it") > plain


@pytest.mark.parametrize(
    "name", ["tokenize", "chat_template", "messages", "tools", "add_generation_prompt", "eos_token", "m", "think", "x"]
)
def test_a_template_is_told_nothing_else(thinking: Served, server: Served, name: str) -> None:
    refused = thinking.post(PATH, chat(chat_template_kwargs={name: True}))
    assert (refused.status, refused.error["param"]) == (400, f"chat_template_kwargs.{name}")
    for value in ([1], {"a": 1}, None, "x" * 300):
        assert thinking.post(PATH, chat(chat_template_kwargs={name: value})).status == 400
    assert server.post(PATH, chat(chat_template_kwargs={name: True})).status == 400


def test_reasoning_and_answer_come_apart(thinking: Served, monkeypatch) -> None:
    """As a model writes them that reasons between marks."""

    say(monkeypatch, "<thi", "nk>\nhm", "m\n</think>\n\nDry", ".")
    monkeypatch.setattr(thinking.engine.opened.processors.tokenizer, "chat_template", THINKING + "{# </think> #}")
    message = thinking.post(PATH, chat()).json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Dry.", "reasoning_content": "hmm"}
    deltas = [data["choices"][0]["delta"] for _, data in thinking.post(PATH, chat(stream=True)).events[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "hmm"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Dry."
    asked = chat(model="bundled")
    blocks = thinking.post("/v1/messages", asked).json["content"]
    assert [(block["type"], block[block["type"]]) for block in blocks] == [("thinking", "hmm"), ("text", "Dry.")]
    events = [data for name, data in thinking.post("/v1/messages", asked | {"stream": True}).events]
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert stops == [0, 1]


def test_an_answer_can_say_what_was_read_for_it(server: Served) -> None:
    before = server.engine.opened.runtime.stats().total
    whole = server.post(PATH, chat(coterie={"provenance": True})).json["coterie"]["provenance"]
    after = server.engine.opened.runtime.stats().total
    assert whole["experts_requested"] == after.requested - before.requested > 0
    assert whole["bytes_read"] == after.bytes_read - before.bytes_read
    assert whole["experts_read"] == after.misses - before.misses
    assert 0 <= whole["hit_rate"] <= 1
    assert whole["experts_absent"] == 0
    assert whole["batching"] == "exact"
    last = server.post(PATH, chat(coterie={"provenance": True}, stream=True)).events[-2][1]
    assert last["coterie"]["provenance"]["experts_requested"] == whole["experts_requested"]
    assert "provenance" not in server.post(PATH, chat()).json["coterie"]
    assert server.post(PATH, chat(coterie={"x": 1})).error["param"] == "coterie.x"
