"""Pictures and sounds within requests: nothing is fetched, no file is opened, nothing of this machine is told."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from coterie.errors import InputError
from coterie.server.media import MOST_MEDIA, Media
from coterie.server.refusals import Refusal
from server.conftest import DATA, Served, chat

PATH = "/v1/chat/completions"


def with_url(url: str, **more):
    return chat(max_tokens=1, **more) | {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url} | more}]}]
    }


def with_sound(data: str, kind: str = "wav"):
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return chat(max_tokens=1) | {"messages": [{"role": "user", "content": [part]}]}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(kind: str, size=(32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "https://example.org/a.png", "http://2130706433/",
        "http://0177.0.0.1/", "http://[::ffff:127.0.0.1]/", "file:///etc/passwd", "/etc/passwd",
        "https://allowed.example\\@169.254.169.254/", "http://allowed.example@127.0.0.1/",
        "C:\\boot.ini", "../../etc/passwd", "ftp://x/y", "data:image/png,AAAA", "data:image/png;base64",
        "data:image/gif;base64,R0lGODlh", "data:image/svg+xml;base64,AAAA", "data:text/plain;base64,AAAA",
        "data:image/png;charset=utf-8;base64,AAAA", "data:image/png;base64,!!!!", "data:image/png;base64,",
        "", "data:image/png;base64,AAAA", "DATA:image/png;base64,AAAA",
    ],
)  # fmt: skip
def test_only_pictures_in_the_request_are_taken(server: Served, url: str) -> None:
    refused = server.post(PATH, with_url(url))
    assert (refused.status, refused.error["param"]) == (400, "messages.0.content.0.image_url.url")


@pytest.mark.parametrize(("kind", "media"), [("PNG", "png"), ("JPEG", "jpeg"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_the_usual_kinds_are_taken(server: Served, kind: str, media: str) -> None:
    assert server.post(PATH, with_url(f"data:image/{media};base64,{encoded(picture(kind))}")).status == 200


def test_a_picture_has_to_be_what_it_says(server: Served) -> None:
    for kind in ("BMP", "GIF", "TIFF", "JPEG"):
        assert server.post(PATH, with_url(f"data:image/png;base64,{encoded(picture(kind))}")).status == 400


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_with_one_is_said_of_its_field(server: Served, stream: bool) -> None:
    data = picture("PNG", (200, 200))
    for broken in (data[:60], data[:-30], b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        answer = server.post(PATH, with_url(f"data:image/png;base64,{encoded(broken)}") | {"stream": stream})
        error = answer.events[-2][1]["error"] if answer.status == 200 else answer.error
        assert error["type"] == "invalid_request_error"
        assert error["param"] == "messages.0.content.0.image_url.url"
        assert "/tmp" not in error["message"]
        assert "0x" not in error["message"]


def png_of_bits(size: int) -> bytes:
    """A black square of one bit a pixel: few bytes for many pixels, and made without having them all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(size * (1 + -(-size // 8))), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused(server: Served) -> None:
    assert server.post(PATH, with_url(f"data:image/png;base64,{encoded(png_of_bits(200))}")).status == 200
    bomb = encoded(png_of_bits(20_000))
    refused = server.post(PATH, with_url(f"data:image/png;base64,{bomb}"))
    assert refused.status == 400
    assert "pixels" in refused.error["message"]


def test_a_low_detail_is_not_given(server: Served) -> None:
    answer = server.post(PATH, with_url("data:image/png;base64,AAAA", detail="low"))
    assert (answer.status, answer.error["param"]) == (400, "messages.0.content.0.image_url.detail")


def test_there_are_not_too_many(server: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(picture('PNG'))}"}}
    messages = [{"role": "user", "content": [part] * (MOST_MEDIA + 1)}]
    refused = server.post(PATH, chat() | {"messages": messages})
    assert refused.status == 400
    assert refused.error["param"] == f"messages.0.content.{MOST_MEDIA}.image_url.url"


def test_a_sound_has_to_be_what_it_says(server: Served) -> None:
    wav = encoded((DATA / "dog.wav").read_bytes())
    assert server.post(PATH, with_sound(wav)).status == 200
    for data, kind in ((wav, "mp3"), ("AAAA", "wav"), ("???", "wav"), (wav[:400], "wav"), (wav, "ogg")):
        refused = server.post(PATH, with_sound(data, kind))
        assert refused.status == 400
        assert refused.error["param"].startswith("messages.0.content.0.input_audio.")
        assert "/tmp" not in refused.error["message"]


@pytest.mark.parametrize("number", [1, 12])
def test_what_is_wrong_with_one_of_many_is_said_of_its_field(number: int) -> None:
    media = Media(pictures={f"picture {one}": b"" for one in range(MOST_MEDIA)})
    with pytest.raises(Refusal) as caught, media.files() as files:
        raise InputError(f"The picture {files.images[number]} is none.")
    assert caught.value.param == f"picture {number}"
    assert caught.value.message == f"The picture picture {number} is none."


def test_thousands_of_frames_are_one_picture(server: Served) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    still = io.BytesIO()
    frames[0].save(still, "WEBP", lossless=True)
    tokens = [
        server.post(PATH, with_url(f"data:image/webp;base64,{encoded(one.getvalue())}")).json["usage"]["prompt_tokens"]
        for one in (file, still)
    ]
    assert tokens[0] == tokens[1]


def test_a_long_silence_is_small_and_refused_all_the_same(server: Served) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 600, np.int16), 8000, format="FLAC")
    assert len(file.getvalue()) < 100_000
    refused = server.post(PATH, with_sound(encoded(file.getvalue()), "flac"))
    assert (refused.status, refused.error["param"]) == (400, "messages.0.content.0.input_audio.data")
    assert "at most" in refused.error["message"]


def test_what_decoders_are_given_tells_nothing_of_this_process(server: Served) -> None:
    data = bytearray(picture("PNG", (64, 64)))
    for place in range(8, len(data), 23):
        broken = bytes(data[:place]) + bytes([data[place] ^ 0x55]) + bytes(data[place + 1 :])
        answer = server.post(PATH, with_url(f"data:image/png;base64,{encoded(broken)}"))
        assert answer.status in (200, 400)
        assert b"0x" not in answer.body
        assert b"/tmp" not in answer.body
