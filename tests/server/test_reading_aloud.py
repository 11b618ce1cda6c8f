"""``/v1/audio/speech``."""

import base64
import io
import json
import wave
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from coterie.engine.loader import load
from coterie.errors import ReadError
from coterie.generation.opened import OpenModel
from coterie.generation.reading_aloud import read_aloud
from coterie.generation.speech import SPEECH_RATE, Speech, Voice
from coterie.generation.wav_writer import pcm16
from server import test_meters
from server.conftest import Served, drop, serving, until

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")

PATH = "/v1/audio/speech"
TEXT = "w9 w8 w7 w6"
LONG = 5
"""A seed with which this is spoken for 64 frames."""
SECONDS = 0.04


def ask(text: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"input": text, "seed": LONG, "coterie": {"max_speech": SECONDS}} | more


@pytest.fixture(scope="module")
def whole(omni) -> Iterator[OpenModel]:
    model = load(omni, expert_memory="100%")
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.fixture(scope="module")
def expected(whole: OpenModel) -> Speech:
    return read_aloud(whole, TEXT, voice=Voice(max_seconds=SECONDS), seed=LONG).result()


@pytest.fixture(scope="module")
def speaker(whole: OpenModel, expected: Speech) -> Iterator[Served]:
    with serving(whole, names=["omni"]) as served:
        yield served


def samples(data: bytes) -> bytes:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SPEECH_RATE)
        return file.readframes(1 << 20)


def test_a_text_becomes_sound(expected: Speech, speaker: Served) -> None:
    raw = speaker.post(PATH, ask(response_format="pcm"))
    assert (raw.status, raw.headers["content-type"]) == (200, "audio/pcm")
    assert raw.body == pcm16(expected.samples)
    file = speaker.post(PATH, ask(voice="Ethan", response_format="wav", speed=1, model="omni", stream_format="audio"))
    assert file.headers["content-type"] == "audio/wav"
    assert samples(file.body) == pcm16(expected.samples)
    assert speaker.post(PATH, ask()).body == file.body
    other = speaker.post(PATH, ask(voice={"id": "chelsie"}))
    assert samples(other.body) != pcm16(expected.samples)


@pytest.mark.slow
def test_it_comes_while_it_is_made(speaker: Served) -> None:
    connection, response = speaker.begin(PATH, ask(coterie=None, response_format="pcm", seed=LONG))
    first = response.read(100)
    assert len(first) == 100
    rest = response.read()
    assert len(rest) > 1000
    connection.close()


def test_events_say_what_it_took(expected: Speech, speaker: Served) -> None:
    answer = speaker.post(PATH, ask(stream_format="sse", response_format="pcm"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *deltas, done = [data for _, data in answer.events]
    assert {one["type"] for one in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(one["audio"]) for one in deltas) == pcm16(expected.samples)
    assert done["type"] == "speech.audio.done"
    tokens = len(expected.completion.token_ids)
    assert done["usage"] == {
        "input_tokens": tokens, "output_tokens": expected.frames, "total_tokens": tokens + expected.frames,
    }  # fmt: skip
    assert done["coterie"]["speech"]["finish_reason"] == expected.finish_reason


def test_the_client_of_openai_hears_it(expected: Speech, speaker: Served) -> None:
    more = {"extra_body": {"seed": LONG, "coterie": {"max_speech": SECONDS}}}
    with openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.audio.speech.create(model="omni", voice="ethan", input=TEXT, response_format="wav", **more)
        assert samples(whole.content) == pcm16(expected.samples)
        with client.audio.speech.with_streaming_response.create(
            model="omni", voice="ethan", input=TEXT, response_format="pcm", **more
        ) as streamed:
            assert b"".join(streamed.iter_bytes()) == pcm16(expected.samples)
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.speech.create(model="omni", voice="alloy", input=TEXT)
        assert refused.value.param == "voice"


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": "  "}, "input", "nothing to say"),
        ({"input": "w5 <|im_end|>"}, "input", "cannot be spoken"),
        ({"input": "w5 " * 2000}, "input", "4096"),
        ({"voice": "alloy"}, "voice", "ethan, chelsie"),
        ({"response_format": "mp3"}, "response_format", "mp3 is not supported here; wav and pcm are"),
        ({"response_format": "pcm16"}, "response_format", "pcm16 is not supported here"),
        ({"stream_format": "file"}, "stream_format", "'audio' or 'sse'"),
        ({"speed": 1.5}, "speed", "not supported"),
        ({"instructions": "gently"}, "instructions", "not supported"),
        ({"coterie": {"provenance": True}}, "coterie.provenance", "not a field"),
        ({"temperature": 1}, "temperature", "not a field"),
    ],
)
def test_what_cannot_be_is_refused_by_name(more, param, words, speaker: Served) -> None:
    refused = speaker.post(PATH, ask() | more)
    assert refused.status == 400
    assert refused.error["param"] == param
    assert words in refused.error["message"]


def test_who_does_not_speak_says_so(server: Served, speaker: Served) -> None:
    refused = server.post(PATH, ask())
    assert (refused.status, refused.error["code"]) == (400, "unsupported")
    assert "no talker" in refused.error["message"]
    assert speaker.post(PATH, ask(model="tts-1")).status == 404


def test_a_client_that_leaves_ends_it(speaker: Served) -> None:
    before = test_meters.figures(speaker)
    connection, response = speaker.begin(PATH, {"input": TEXT, "seed": 11, "response_format": "pcm"})
    assert response.read(10)
    drop(connection, response)
    until(lambda: speaker.engine.running == 0)
    assert speaker.post(PATH, ask()).status == 200
    after = test_meters.figures(speaker)
    key = ("coterie_cancelled_total", (("phase", "decode"),))
    # A short one may have been whole before it was seen that the client has left.
    assert after.get(key, 0) - before.get(key, 0) in (0, 1)


def test_what_fails_at_once_has_a_status_and_what_fails_later_breaks_off(whole, speaker: Served, monkeypatch) -> None:
    own, steps = whole.model.talker.codec_head.forward, iter(range(10_000))
    fails_at = 0

    def fails(hidden):
        if next(steps) >= fails_at:
            raise ReadError("Expert 3 of layer 1 cannot be read.")
        return own(hidden)

    monkeypatch.setattr(whole.model.talker.codec_head, "forward", fails)
    refused = speaker.post(PATH, ask())
    assert refused.status == 500
    assert "cannot be read" in refused.error["message"]
    steps, fails_at = iter(range(10_000)), 20
    connection, response = speaker.begin(PATH, ask())
    with pytest.raises(Exception, match=r"IncompleteRead|closed|reset"):
        response.read()
    connection.close()
    steps = iter(range(10_000))
    events = [data for _, data in speaker.post(PATH, ask(stream_format="sse")).events]
    assert events[0]["type"] == "speech.audio.delta"
    assert "cannot be read" in json.dumps(events[-1]["error"])
