"""Answers in speech: ``modalities`` and ``audio`` of ``/v1/chat/completions``."""

import base64
import io
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from coterie.engine.loader import load
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import speak
from coterie.generation.speech import SPEECH_RATE, Speech, Voice
from coterie.generation.video_options import VideoOptions
from coterie.generation.wav_writer import pcm16
from docs.pages import ROOT, python_blocks
from films import write_film
from server import test_meters
from server.conftest import Served, drop, read_events, serving, until
from zoo.tokenizer import add_processor

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")

PATH = "/v1/chat/completions"
FRAME_S = 24 / SPEECH_RATE
"""Seconds of a frame of this model."""
SECONDS = 20 * FRAME_S
USER = {"role": "user", "content": "w5 w6 w7"}


def ask(text: str = "w5 w6 w7", *, format: str | None = None, voice: str | None = None, **more: Any) -> dict[str, Any]:
    audio = {name: value for name, value in (("format", format), ("voice", voice)) if value is not None}
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
        "temperature": 0,
        "modalities": ["text", "audio"],
        "audio": audio,
        "coterie": {"max_speech": SECONDS, "voice_greedy": True},
    } | more


@pytest.fixture(scope="module")
def whole(omni) -> Iterator[OpenModel]:
    add_processor(omni)
    model = load(omni, expert_memory="100%")
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.fixture(scope="module")
def speaker(whole: OpenModel) -> Iterator[Served]:
    with serving(whole, names=["omni"]) as served:
        yield served


@pytest.fixture(scope="module")
def alone(whole: OpenModel) -> Callable[..., Speech]:
    """What the same answer is without a server. Made before the server takes the model."""

    def answered(messages: Any = (USER,), voice: str = "ethan", seed: int | None = None, shown: Any = None) -> Speech:
        how = Voice(name=voice, greedy=seed is None, seed=seed, max_seconds=SECONDS)
        inputs = chat_inputs(whole.processors, list(messages), video_options=shown or VideoOptions())
        return speak(whole, inputs, Sampling(max_new_tokens=4, temperature=0), voice=how).result()

    return answered


@pytest.fixture(scope="module")
def expected(alone) -> Speech:
    return alone()


def sound_of(message: dict[str, Any]) -> bytes:
    """The samples of an answer."""
    data = base64.b64decode(message["audio"]["data"], validate=True)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SPEECH_RATE)
        return file.readframes(file.getnframes())


def deltas(events: list[tuple[str | None, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for _, data in events if data != "[DONE]" for choice in data["choices"]]


def heard(events: list[tuple[str | None, Any]], name: str) -> list[Any]:
    return [one["audio"][name] for one in deltas(events) if name in one.get("audio", {})]


def test_a_whole_answer_has_its_sound_and_what_is_said_in_it(expected: Speech, speaker: Served) -> None:
    answer = speaker.post(PATH, ask()).json
    choice = answer["choices"][0]
    assert choice["message"]["content"] is None
    audio = choice["message"]["audio"]
    assert audio.keys() == {"id", "data", "transcript", "expires_at"}
    assert audio["id"].startswith("audio_")
    assert audio["expires_at"] == answer["created"] + 3600
    assert audio["transcript"] == expected.completion.text
    assert sound_of(choice["message"]) == pcm16(expected.samples)
    assert choice["finish_reason"] == "length"
    told = answer["coterie"]["speech"]
    assert told["finish_reason"] == expected.finish_reason == "length"
    assert told["seconds"] == pytest.approx(len(expected.samples) / SPEECH_RATE, abs=1e-4)
    assert told["first_sound_s"] > 0
    usage = answer["usage"]
    tokens = len(expected.completion.token_ids)
    assert usage["completion_tokens_details"] == {"audio_tokens": 20, "text_tokens": tokens}
    assert usage["completion_tokens"] == tokens + 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + tokens + 20


def test_other_voices_and_formats(alone, speaker: Served) -> None:
    other = alone(voice="chelsie")
    raw = speaker.post(PATH, ask(format="pcm16", voice="Chelsie")).json["choices"][0]["message"]
    assert base64.b64decode(raw["audio"]["data"]) == pcm16(other.samples)
    by_id = speaker.post(PATH, ask(audio={"voice": {"id": "chelsie"}, "format": "wav"})).json["choices"][0]["message"]
    assert sound_of(by_id) == pcm16(other.samples)
    # Whoever says no more than this gets a WAV in the first voice.
    usual = speaker.post(PATH, ask() | {"audio": None}).json["choices"][0]["message"]
    assert sound_of(usual) != pcm16(other.samples)


def test_a_video_is_answered_in_speech(alone, speaker: Served, tmp_path: Path) -> None:
    pytest.importorskip("av")
    film = write_film(tmp_path / "a.mp4", tone=440.0)
    expected = alone([user_message("w5", videos=[film])], shown=VideoOptions(pixels=1024))
    url = f"data:video/mp4;base64,{base64.b64encode(film.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "w5"}]
    asked = ask(messages=[{"role": "user", "content": content}], mm_processor_kwargs={"max_pixels": 1024})
    answer = speaker.post(PATH, asked).json
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] > 0
    assert answer["choices"][0]["message"]["audio"]["transcript"] == expected.completion.text
    assert sound_of(answer["choices"][0]["message"]) == pcm16(expected.samples)


def test_a_voice_has_a_seed_of_its_own(alone, expected: Speech, speaker: Served) -> None:
    drawn = alone(seed=5)
    for more in ({}, {"seed": 8}):
        message = speaker.post(PATH, ask(coterie={"max_speech": SECONDS, "voice_seed": 5}, **more)).json["choices"][0]
        assert sound_of(message["message"]) == pcm16(drawn.samples) != pcm16(expected.samples)
    other = speaker.post(PATH, ask(coterie={"max_speech": SECONDS, "voice_seed": 6})).json["choices"][0]["message"]
    assert sound_of(other) != pcm16(drawn.samples)


def test_a_stream_has_the_transcript_and_the_sound_in_pieces(expected: Speech, speaker: Served) -> None:
    answer = speaker.post(PATH, ask(stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.events
    assert events[-1][1] == "[DONE]"
    assert deltas(events)[0] == {"role": "assistant", "content": None}
    assert len({*heard(events, "id")}) == 1
    assert "".join(heard(events, "transcript")) == expected.completion.text
    data = heard(events, "data")
    assert len(data) > 1
    assert b"".join(map(base64.b64decode, data)) == base64.b64decode("".join(data)) == pcm16(expected.samples)
    (expires_at,) = heard(events, "expires_at")
    assert expires_at > events[0][1]["created"]
    assert not any(one.get("content") for one in deltas(events))
    last, usage = events[-3][1], events[-2][1]
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == ("length", {})
    assert last["coterie"]["speech"]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens_details"]["audio_tokens"] == 20


def test_a_stream_of_wav_begins_with_its_header(expected: Speech, speaker: Served) -> None:
    sound = base64.b64decode("".join(heard(speaker.post(PATH, ask(stream=True, format="wav")).events, "data")))
    assert (sound[:4], sound[40:44]) == (b"RIFF", b"\xff" * 4)
    assert sound[44:] == pcm16(expected.samples)


@pytest.mark.slow
def test_the_client_of_openai_hears_both(expected: Speech, speaker: Served) -> None:
    with openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0) as client:
        asked = {
            "model": "omni", "messages": [USER], "max_tokens": 4, "temperature": 0, "modalities": ["text", "audio"],
            "extra_body": {"coterie": {"max_speech": SECONDS, "voice_greedy": True}},
        }  # fmt: skip
        audio = (
            client.chat.completions.create(**asked, audio={"voice": "ethan", "format": "wav"}).choices[0].message.audio
        )
        assert audio.transcript == expected.completion.text
        assert sound_of({"audio": {"data": audio.data}}) == pcm16(expected.samples)
        stream = client.chat.completions.create(**asked, audio={"voice": "ethan", "format": "pcm16"}, stream=True)
        pieces = [audio for chunk in stream if (audio := chunk.choices[0].delta.audio) is not None]
        assert b"".join(base64.b64decode(one.data or "") for one in pieces) == pcm16(expected.samples)
        assert "".join(one.transcript or "" for one in pieces) == expected.completion.text


def test_the_examples_of_the_page_run(speaker: Served, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "serve.md").read_text()
    examples = [block for block in python_blocks(page) if "audio" in block and "voice" in block]
    assert len(examples) == 3
    with openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0) as client:
        asked = client.with_options(timeout=60)
        for block in examples:
            short = block.replace('model="qwen3-omni",', 'model="omni", extra_body={"coterie": {"max_speech": 0.02}},')
            exec(short, {"client": asked, "base64": base64})
    assert capsys.readouterr().out.strip()
    for name in ("story.wav", "morning.wav"):
        with wave.open(name) as file:
            assert any(file.readframes(400))
    assert len(Path("story.pcm").read_bytes()) > 2 * 100


def test_a_conversation_goes_on_with_what_was_said(alone, speaker: Served) -> None:
    first = speaker.post(PATH, ask()).json["choices"][0]["message"]
    said = first["audio"]["transcript"]
    more = {"role": "user", "content": "w9 w8"}
    second = alone([USER, {"role": "assistant", "content": said}, more])
    for before in (
        {"role": "assistant", "audio": {"id": first["audio"]["id"]}},
        first,  # as it came
        {"role": "assistant", "content": None, "audio": {"id": "audio_of-long-ago", "transcript": said}},
        {"role": "assistant", "content": said},
    ):
        asked = ask(messages=[USER, before, more])
        answer = speaker.post(PATH, asked).json["choices"][0]["message"]
        assert answer["audio"]["transcript"] == second.completion.text
        assert sound_of(answer) == pcm16(second.samples)
    streamed = speaker.post(PATH, ask(stream=True)).events
    before = {"role": "assistant", "audio": {"id": heard(streamed, "id")[0]}}
    text = {"messages": [USER, before, more], "max_tokens": 4, "temperature": 0}
    assert speaker.post(PATH, text).json["choices"][0]["message"]["content"] == second.completion.text
    counted = [
        speaker.post(f"{PATH}/input_tokens", {"messages": [USER, one, more]}).json["input_tokens"]
        for one in (before, {"role": "assistant", "content": said})
    ]
    assert counted[0] == counted[1]
    unknown = speaker.post(PATH, ask(messages=[USER, {"role": "assistant", "audio": {"id": "audio_none"}}, more]))
    assert (unknown.status, unknown.error["param"]) == (400, "messages.1.audio.id")
    assert unknown.error["code"] == "audio_not_found"
    empty = speaker.post(PATH, ask(messages=[USER, {"role": "assistant"}, more]))
    assert (empty.status, empty.error["param"]) == (400, "messages.1.content")


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"audio": {"voice": "alloy"}}, "audio.voice", "ethan, chelsie"),
        ({"audio": {"format": "mp3"}}, "audio.format", "mp3 is not supported here; wav and pcm16 are"),
        ({"audio": {"format": "opus"}}, "audio.format", "opus is not supported"),
        ({"audio": {"format": "tape"}}, "audio.format", "'wav' or 'pcm16'"),
        ({"audio": {"speed": 2}}, "audio.speed", "not a field"),
        ({"modalities": ["audio"]}, "modalities", '["text", "audio"]'),
        ({"modalities": ["text", "video"]}, "modalities.1", "'text' or 'audio'"),
        ({"modalities": []}, "modalities", "at least 1"),
        ({"modalities": ["text"]}, "audio", "answers in speech"),
        ({"modalities": None}, "audio", "answers in speech"),
        ({"modalities": None, "audio": None}, "coterie.max_speech", "answers in speech"),
        ({"coterie": {"max_speech": 0}}, "coterie.max_speech", "greater than 0"),
        ({"coterie": {"max_speech": "1"}}, "coterie.max_speech", "valid number"),
        ({"coterie": {"voice_seed": -1}}, "coterie.voice_seed", "greater than or equal to 0"),
        ({"coterie": {"voice_seed": 1, "voice_greedy": True}}, "coterie.voice_seed", "nothing is drawn"),
        ({"modalities": None, "audio": None, "coterie": {"voice_seed": 1}}, "coterie.voice_seed", "answers in speech"),
        ({"n": 2}, "n", "one answer is spoken"),
        ({"logprobs": True}, "logprobs", "no log probabilities"),
        ({"stop": "w9"}, "stop", "would be spoken"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not for speaking"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(more: dict[str, Any], param: str, words: str, speaker: Served) -> None:
    for stream in (False, True):
        refused = speaker.post(PATH, ask(stream=stream) | more)
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert refused.error["param"] == param
        assert words in refused.error["message"]


def test_a_model_without_a_talker_says_so(server: Served) -> None:
    refused = server.post(PATH, ask())
    assert (refused.status, refused.error["param"], refused.error["code"]) == (400, "modalities", "unsupported")
    assert "has no talker" in refused.error["message"]
    assert server.get("/v1/models").json["data"][0]["architecture"]["output_modalities"] == ["text"]


def test_a_thinker_alone_says_how_it_would_speak(omni) -> None:
    with load(omni, component="thinker", expert_memory="100%") as model, serving(OpenModel.of(model)) as served:
        refused = served.post(PATH, ask())
        assert (refused.status, refused.error["param"]) == (400, "modalities")
        assert "--speech" in refused.error["message"]
        assert served.post(PATH, ask() | {"modalities": ["text"], "audio": None, "coterie": None}).status == 200


def test_the_model_s_voices_are_listed(speaker: Served) -> None:
    model = speaker.get("/v1/models/omni").json
    assert model["architecture"]["output_modalities"] == ["text", "audio"]
    assert model["voices"] == ["ethan", "chelsie"]
    assert speaker.get("/coterie/model").json["voices"] == ["ethan", "chelsie"]


def test_text_is_answered_beside_it(expected: Speech, speaker: Served) -> None:
    text = {"messages": [USER], "max_tokens": 4, "temperature": 0}
    for more in ({}, {"modalities": ["text"]}, {"n": 2}):
        message = speaker.post(PATH, text | more).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": expected.completion.text}


def test_the_sound_of_several_at_once_is_that_of_each_alone(expected: Speech, alone, speaker: Served) -> None:
    other = alone(voice="chelsie")
    begun = [
        speaker.begin(PATH, ask(stream=True, voice=voice)) for voice in ("ethan", "chelsie", "ethan")
    ]  # fmt: skip
    sounds = []
    for connection, response in begun:
        data = heard(list(read_events(response.read().decode())), "data")
        sounds.append(b"".join(map(base64.b64decode, data)))
        connection.close()
    assert sounds == [pcm16(one.samples) for one in (expected, other, expected)]


def test_a_client_that_leaves_ends_its_speech(speaker: Served) -> None:
    before = test_meters.figures(speaker)
    connection, response = speaker.begin(PATH, ask(stream=True, coterie={"max_speech": 300}))
    seen = ""
    while '"data"' not in seen:
        seen += response.readline().decode()
    assert speaker.engine.running == 1
    drop(connection, response)
    until(lambda: speaker.engine.running == 0)
    key = ("coterie_cancelled_total", (("phase", "decode"),))
    until(lambda: test_meters.figures(speaker).get(key, 0) == before.get(key, 0) + 1)
    assert speaker.post(PATH, ask()).status == 200


def test_speech_is_measured(speaker: Served) -> None:
    before = test_meters.figures(speaker)
    assert speaker.post(PATH, ask()).status == 200
    after = test_meters.figures(speaker)

    def grown(name: str) -> float:
        return after[name, ()] - before.get((name, ()), 0.0)

    assert grown("coterie_speech_seconds_total") == pytest.approx(SECONDS, rel=0.05)
    assert grown("coterie_time_to_first_audio_seconds_count") == 1
    assert grown("coterie_speech_real_time_factor_count") == 1
    assert grown("coterie_speech_real_time_factor_sum") > 0
