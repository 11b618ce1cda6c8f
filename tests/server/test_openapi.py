"""The OpenAPI document."""

import re

from coterie.server import openapi
from server.conftest import Served


def test_the_document_describes_every_address(server: Served) -> None:
    document = server.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert {
        "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/models", "/v1/responses", "/v1/responses/input_tokens",
        "/v1/chat/completions/input_tokens", "/v1/audio/transcriptions", "/v1/audio/speech",
        "/v1/models/{model}", "/tokenize", "/detokenize", "/apply-template", "/healthz", "/readyz", "/health",
        "/metrics", "/slots", "/props",
        "/openapi.json",
        "/coterie/state", "/coterie/model", "/coterie/profile", "/coterie/profile/rank", "/coterie/profile/expert",
    } == set(document["paths"])  # fmt: skip
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert chat["required"] == ["messages"]
    assert {"temperature", "max_tokens", "stream_options"} <= set(chat["properties"])


def test_nothing_is_referred_to_that_is_not_there(server: Served) -> None:
    answer = server.get("/openapi.json")
    schemas = answer.json["components"]["schemas"]
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.body.decode()))
    assert wanted
    assert wanted <= set(schemas)


def test_it_is_made_once(serve, monkeypatch) -> None:
    made, document = [], openapi.document

    def counted(*arguments, **options):
        made.append(1)
        return document(*arguments, **options)

    monkeypatch.setattr(openapi, "document", counted)
    server: Served = serve()
    assert server.get("/openapi.json").json == server.get("/openapi.json").json
    assert len(made) == 1
