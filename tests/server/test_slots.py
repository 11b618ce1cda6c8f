"""``/slots`` and ``/props``, and addresses that are not there."""

import json

import pytest

from server.conftest import BUNDLED, PROMPT, Served, chat, until

PATH = "/v1/chat/completions"


def test_slots_say_how_far_requests_are_and_nothing_of_them(serve, brake) -> None:
    server = serve(engine={"parallel": 1})
    idle = server.get("/slots").json
    assert [(slot["id"], slot["is_processing"], slot["phase"]) for slot in idle] == [(0, False, None)]
    brake.hold()
    connection, response = server.begin(PATH, chat(stream=True))
    assert brake.reached.wait(30)
    waiting, other = server.begin(PATH, chat("a secret question", stream=True))
    busy = server.get("/slots")
    assert [(slot["is_processing"], slot["phase"]) for slot in busy.json] == [(True, "prefill")]
    for word in (PROMPT, "secret"):
        assert word not in busy.body.decode()
    assert set(busy.json[0]) == {"id", "n_ctx", "speculative", "is_processing", "phase"}
    brake.release()
    for answer, opened in ((response, connection), (other, waiting)):
        answer.read()
        opened.close()
    until(lambda: not server.get("/slots").json[0]["is_processing"])


def test_props_say_what_a_request_gets_that_does_not_say(server: Served, opened) -> None:
    props = server.get("/props").json
    assert props["default_generation_settings"]["n_ctx"] == server.get("/v1/models").json["data"][0]["max_model_len"]
    assert props["default_generation_settings"]["params"]["temperature"] == 0
    assert (props["model_alias"], props["total_slots"]) == ("bundled", 8)
    assert props["modalities"] == {"vision": True, "audio": True, "video": True}
    assert str(BUNDLED.parent) not in json.dumps(props)


@pytest.mark.parametrize("path", ["/slots", "/props"])
def test_neither_is_set(server: Served, path: str) -> None:
    assert server.post(path, {}).status == 405


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/rerank", "/rerank", "/v1/reranking"])
def test_who_asks_for_what_is_not_there_is_told_why(server: Served, path: str) -> None:
    answer = server.post(path, {"input": "x", "model": "bundled"})
    assert (answer.status, answer.error["type"], answer.error["code"]) == (501, "not_supported_error", "unsupported")
    assert "trained" in answer.error["message"]
    assert path not in server.get("/openapi.json").json["paths"]


def test_health_is_readiness(server: Served) -> None:
    assert server.get("/health").json == server.get("/readyz").json
