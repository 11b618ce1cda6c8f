"""``/v1/audio/transcriptions``."""

import base64
from typing import Any

import openai
import pytest

from coterie.server import service
from coterie.server.routes.audio import QUESTION
from server.conftest import DATA, Answer, Served

PATH = "/v1/audio/transcriptions"
SOUND = DATA / "dog.wav"


def sent(server: Served, sound: bytes | None = None, **fields: str) -> Answer:
    body = b""
    for name, value in fields.items():
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    data = SOUND.read_bytes() if sound is None else sound
    body += b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.wav"\r\n\r\n' + data + b"\r\n--b--\r\n"
    return server.ask("POST", PATH, body, {"Content-Type": "multipart/form-data; boundary=b"})


@pytest.fixture(autouse=True, scope="module")
def short():
    """The bundled model does not end after this question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "UNTRAINED_TOKENS", 6)
        yield


@pytest.fixture(scope="module")
def expected(server: Served) -> str:
    """What a conversation with the same sound and question gives."""
    sound = base64.b64encode(SOUND.read_bytes()).decode()
    content = [
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": QUESTION},
    ]
    asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
    return server.post("/v1/chat/completions", asked).json["choices"][0]["message"]["content"].strip()


def test_a_sound_becomes_text(server: Served, expected: str) -> None:
    answer = sent(server, model="bundled").json
    assert answer["text"] == expected
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    details = answer["usage"]["input_token_details"]
    assert 0 < details["audio_tokens"] < sum(details.values()) == answer["usage"]["input_tokens"]
    plain = sent(server, response_format="text", temperature="0")
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.body.decode() == f"{expected}\n"


def test_openai_s_client_is_answered(server: Served, expected: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert client.audio.transcriptions.create(model="bundled", file=SOUND).text == expected
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.transcriptions.create(model="bundled", file=SOUND, language="en")
        assert refused.value.param == "language"


@pytest.mark.parametrize(
    ("field", "value"),
    [("response_format", "srt"), ("response_format", "verbose_json"), ("language", "en"), ("prompt", "x"),
     ("stream", "true"), ("temperature", "2"), ("temperature", "warm"), ("timestamp_granularities[]", "word")],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(server: Served, field: str, value: str) -> None:
    refused = sent(server, **{field: value})
    assert (refused.status, refused.error["param"]) == (400, field)


def test_other_models_and_files_are_refused(server: Served) -> None:
    assert sent(server, model="whisper-1").status == 404
    for data in (b"", b"no sound", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, SOUND.read_bytes()[:300]):
        refused = sent(server, data)
        assert (refused.status, refused.error["param"]) == (400, "file")
        assert "/tmp" not in refused.error["message"]
    assert sent(server, b"\0" * (21 << 20)).status == 413
    text = server.post(PATH, {"file": "x"})
    assert text.status == 415


def test_a_model_without_ears_says_so(server: Served, opened: Any, monkeypatch) -> None:
    monkeypatch.setattr(type(opened.processors), "sounds", property(lambda _: None))
    refused = sent(server)
    assert (refused.status, refused.error["code"]) == (400, "unsupported")
    assert "audio encoder" in refused.error["message"]
