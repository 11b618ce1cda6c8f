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


def in_responses(url: str, **more):
    content = [{"type": "input_video", "video_url": url}]
    return {"input": [{"role": "user", "content": content}], "max_output_tokens": 1} | more


def in_messages(url: str, **more):
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    block = {"type": "video", "source": {"type": "base64", "media_type": media_type, "data": data}}
    return {"model": "bundled", "messages": [{"role": "user", "content": [block]}], "max_tokens": 1} | more


SHAPES = [
    ("/v1/responses", "/input_tokens", in_responses, "input.0.content.0.video_url"),
    ("/v1/messages", "/count_tokens", in_messages, "messages.0.content.0.source.data"),
]


@pytest.mark.parametrize(("path", "count", "with_one", "param"), SHAPES)
def test_other_shapes_have_a_place_for_a_video(server: Served, film: bytes, path, count, with_one, param) -> None:
    url = f"data:video/mp4;base64,{encoded(film)}"
    shown = SMALL | {"use_audio_in_video": False, "fps": 1}
    expected = server.post(PATH, with_video(url, mm_processor_kwargs=shown)).json["usage"]["prompt_tokens"]
    request = with_one(url, mm_processor_kwargs=shown)
    usage = server.post(path, request).json["usage"]
    # Anthropic's clients are told apart what was read from the cache, or put into it.
    read = [usage.get(name, 0) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")]
    assert sum(read) == expected
    asked = {name: value for name, value in request.items() if name != "max_tokens"}
    assert server.post(path + count, asked).json["input_tokens"] == expected
    for wrong in (f"data:video/mp4;base64,{encoded(film[:300])}", "data:video/webm;base64,AAAAIGZ0eXBpc29t",
                  "data:image/png;base64,AAAA"):  # fmt: skip
        refused = server.post(path, with_one(wrong))
        assert refused.status == 400
        assert param in refused.error["message"]
        assert "/tmp" not in refused.error["message"]
    for options, field in (({"fps": 1, "num_frames": 4}, "mm_processor_kwargs.num_frames"),
                           ({"min_pixels": 1}, "mm_processor_kwargs.min_pixels")):  # fmt: skip
        refused = server.post(path, with_one(url, mm_processor_kwargs=options))
        assert (refused.status, field in refused.error["message"]) == (400, True)


def test_other_shapes_show_no_video_where_there_is_none(server: Served) -> None:
    said = {"model": "bundled", "max_tokens": 1, "messages": [{"role": "user", "content": "And"}]}
    for path, request in (("/v1/responses", {"input": "And", "max_output_tokens": 1}), ("/v1/messages", said)):
        refused = server.post(path, request | {"mm_processor_kwargs": SMALL})
        assert (refused.status, "mm_processor_kwargs is for videos" in refused.error["message"]) == (400, True)


def test_a_video_of_the_model_is_refused(server: Served) -> None:
    part = {"type": "input_video", "video_url": "data:video/mp4;base64,AAAA"}
    refused = server.post("/v1/responses", {"input": [{"role": "system", "content": [part]}]})
    assert (refused.status, refused.error["param"]) == (400, "input.0.content.0")


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
