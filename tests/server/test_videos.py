"""Videos within requests, and sounds in containers."""

import base64

import pytest

from films import write_film
from server.conftest import Served, chat

pytest.importorskip("av")

PATH = "/v1/chat/completions"
SMALL = {"max_pixels": 1024}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_film(tmp_path_factory.mktemp("films") / "a.mp4", tone=440.0, frames=30)
    return path.read_bytes()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def with_video(url: str, **more):
    part = {"type": "video_url", "video_url": {"url": url}}
    return chat(max_tokens=1) | {"messages": [{"role": "user", "content": [part]}], **more}


def test_a_video_is_seen_and_heard(server: Served, film: bytes) -> None:
    request = with_video(f"data:video/mp4;base64,{encoded(film)}", mm_processor_kwargs=SMALL)
    usage = server.post(PATH, request).json["usage"]
    details = usage["prompt_tokens_details"]
    assert details["video_tokens"] == 24
    assert details["audio_tokens"] > 20
    assert details["text_tokens"] == usage["prompt_tokens"] - 24 - details["audio_tokens"]
    assert server.post(f"{PATH}/input_tokens", request).json["input_tokens"] == usage["prompt_tokens"]
    request = with_video(
        f"data:video/mp4;base64,{encoded(film)}", mm_processor_kwargs=SMALL | {"use_audio_in_video": False, "fps": 1}
    )
    details = server.post(PATH, request).json["usage"]["prompt_tokens_details"]
    assert (details["video_tokens"], details["audio_tokens"]) == (24, 0)  # four frames at the least


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/a.mp4", "file:///etc/passwd", "data:video/mp4,AAAA", "data:video/mp4;base64,!!",
        "data:image/png;base64,AAAA", "data:video/mp4;base64,AAAA", "data:video/webm;base64,AAAAIGZ0eXBpc29t",
        "data:application/x-mpegurl;base64,I0VYVE0zVQ==", "data:video/mp4;base64,I0VYVE0zVQ==",
    ],
)  # fmt: skip
def test_only_videos_in_the_request_are_taken(server: Served, url: str) -> None:
    refused = server.post(PATH, with_video(url))
    assert (refused.status, refused.error["param"]) == (400, "messages.0.content.0.video_url.url")


def test_what_is_wrong_with_a_video_is_said_of_its_field(server: Served, film: bytes) -> None:
    for data in (film[:300], film[: len(film) // 2]):
        refused = server.post(PATH, with_video(f"data:video/mp4;base64,{encoded(data)}"))
        assert refused.status == 400
        assert refused.error["param"] == "messages.0.content.0.video_url.url"
        assert "/tmp" not in refused.error["message"]


@pytest.mark.parametrize(
    ("options", "param"),
    [({"fps": 0}, "mm_processor_kwargs.fps"), ({"fps": 1, "num_frames": 4}, "mm_processor_kwargs.num_frames"),
     ({"min_pixels": 1}, "mm_processor_kwargs.min_pixels"), ({"num_frames": 99}, "messages.0.content.0.video_url.url")],
)  # fmt: skip
def test_options_of_videos_are_checked(server: Served, film: bytes, options: dict[str, float], param: str) -> None:
    refused = server.post(
        PATH, with_video(f"data:video/mp4;base64,{encoded(film)}", mm_processor_kwargs=options)
    )  # fmt: skip
    assert refused.status == 400
    assert refused.error["param"] in (param, None)
    refused = server.post(PATH, chat(max_tokens=1, mm_processor_kwargs=SMALL))
    assert refused.error["param"] == "mm_processor_kwargs"


def test_sounds_in_containers_are_taken(server: Served, film: bytes) -> None:
    part = {"type": "input_audio", "input_audio": {"data": encoded(film), "format": "m4a"}}
    request = chat(max_tokens=1) | {"messages": [{"role": "user", "content": [part]}]}
    assert server.post(PATH, request).json["usage"]["prompt_tokens_details"]["audio_tokens"] > 20
    part["input_audio"]["format"] = "ogg"
    assert "not a sound of the format ogg" in server.post(PATH, request).error["message"]


def test_what_the_model_takes_is_told(server: Served) -> None:
    (model,) = server.get("/v1/models").json["data"]
    assert model.get("input_modalities", model.get("architecture", {}).get("input_modalities")) == [
        "text", "image", "audio", "video",
    ]  # fmt: skip
