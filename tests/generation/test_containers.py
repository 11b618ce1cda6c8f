"""Videos and sounds in containers: what is in them, decoded frame by frame, and files that are damaged or hostile."""

import struct
import subprocess

import numpy as np
import pytest

from coterie.errors import InputError
from coterie.generation import containers, decoding
from coterie.generation.containers import container_format, open_container
from coterie.generation.sound import read_sound
from films import RATE, picture, write_film

av = pytest.importorskip("av")
SIZE = (64, 48)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "a.mp4", tone=440.0, size=SIZE)


def opened(path, **options):
    return open_container(path, what="The video", **options)


def test_frames_are_those_that_were_written(tmp_path):
    path = write_film(tmp_path / "a.mkv", codec="ffv1", size=(50, 38))
    with opened(path) as container:
        facts = container.video
        assert facts is not None
        assert (facts.frames, facts.rate, facts.height, facts.width, facts.sound) == (24, 12.0, 38, 50, False)
        assert facts.seconds == 2.0
        for number, frame in zip([0, 7, 7, 23], container.frames([0, 7, 7, 23]), strict=True):
            assert np.array_equal(frame, picture(number, (50, 38)))
        (again,) = container.frames([7])
        assert np.array_equal(again, picture(7, (50, 38)))


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.mp4", "mpeg4", "aac"),
        ("a.mov", "mjpeg", "pcm_s16le"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("a.avi", "mpeg4", "mp3"),
        ("a.ts", "mpeg2video", "mp2"),
    ],
)
def test_containers_that_people_have(tmp_path, name, codec, sound):
    try:
        av.codec.Codec(codec, "w"), av.codec.Codec(sound, "w")
    except av.error.FFmpegError:
        pytest.skip("this FFmpeg does not write it")
    rate = 48_000 if sound in ("libopus", "mp2", "mp3") else RATE
    path = write_film(tmp_path / name, codec=codec, sound_codec=sound, tone=440.0, rate=25, frames=25, sound_rate=rate)
    with opened(path) as container:
        assert container.video is not None
        assert container.sound
        assert container.video.frames == 25
        assert container.video.rate == pytest.approx(25)
        assert len(list(container.frames([0, 12, 24]))) == 3
    samples = read_sound(path, rate=RATE)
    assert len(samples) == pytest.approx(RATE, rel=0.2)
    spectrum = abs(np.fft.rfft(samples[2000:10000]))
    assert np.argmax(spectrum) * RATE / 8000 == pytest.approx(440, abs=3)


def test_videos_that_were_taken_upright_are_turned(film, tmp_path):
    data = bytearray(film.read_bytes())
    matrix = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    # A quarter turn clockwise, as telephones write it.
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
    path = tmp_path / "upright.mp4"
    path.write_bytes(data)
    with opened(film) as flat, opened(path) as turned:
        assert (turned.video.height, turned.video.width) == SIZE
        (one,), (other,) = flat.frames([3]), turned.frames([3])
        assert np.array_equal(np.rot90(one, -1), other)


def test_sounds_in_containers(tmp_path):
    path = tmp_path / "a.m4a"
    write_film(tmp_path / "a.mp4", tone=300.0).rename(path)
    with open_container(path, what="The sound") as container:
        blocks = list(container.samples())
    assert {rate for rate, _ in blocks} == {RATE}
    assert sum(len(block) for _, block in blocks) == pytest.approx(2 * RATE, abs=2048)
    assert len(read_sound(path, rate=8000)) == pytest.approx(2 * 8000, abs=1024)
    with pytest.raises(InputError, match=r"2\.\d s long; this model takes 1\.0 s at most"):
        read_sound(path, rate=RATE, max_seconds=1.0)
    with pytest.raises(InputError, match="has no sound"):
        read_sound(write_film(tmp_path / "silent.mp4"), rate=RATE)


def test_files_that_are_none(film, tmp_path):
    data = film.read_bytes()
    cases = {
        "text": b"hello" * 200,
        "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "list": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "empty": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="none of the formats") as caught, opened(tmp_path / name):
            pass
        assert caught.value.path == tmp_path / name
    for name, content in {"head": data[:200], "half": data[: len(data) // 2], "zeros": data[:64] + bytes(5000)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"The video .* cannot be read: "), opened(tmp_path / name) as container:
            assert container.video is not None
    with pytest.raises(InputError, match="There is no video file"), opened(tmp_path / "missing.mp4"):
        pass
    with pytest.raises(InputError, match="There is no video file"), opened(tmp_path):
        pass


def test_a_film_without_its_end_is_told_from_a_whole_one(tmp_path):
    path = write_film(tmp_path / "a.ts", codec="mpeg2video", frames=60)
    data = bytearray(path.read_bytes())
    half = len(data) // 376 * 188
    data[half:] = bytes(len(data) - half)
    path.write_bytes(data)
    with opened(path) as container:
        assert container.video.frames < 45  # what is there is all that there is


def test_a_header_that_asks_for_terabytes_takes_no_more_memory_than_there_is(film, tmp_path):
    data = bytearray(film.read_bytes())
    for name, offset, value in ((b"stsz", 12, 0xFFFFFFF0), (b"stsz", 8, 1), (b"stsc", 16, 0xFFFFFFF0)):
        place = data.index(name)
        data[place + offset : place + offset + 4] = value.to_bytes(4, "big")
    path = tmp_path / "bomb.mp4"
    path.write_bytes(data)
    with (
        pytest.raises(InputError, match=r"cannot be read|more memory"),
        opened(path, room=200 << 20) as container,
    ):
        list(container.frames([0]))


def test_frames_and_lengths_have_limits(film, monkeypatch):
    monkeypatch.setattr(containers, "MOST_VIDEO_FRAMES", 20)
    with pytest.raises(InputError, match="more than 20 frames"), opened(film):
        pass
    monkeypatch.setattr(containers, "MOST_FRAME_PIXELS", 1000)
    with pytest.raises(InputError, match="cannot be read"), opened(film):
        pass


def test_there_has_to_be_room_for_the_process(film):
    with pytest.raises(InputError, match="the memory budget leaves") as caught, opened(film, room=1 << 20):
        pass
    assert caught.value.room == 1 << 20


def test_without_pyav_the_error_says_what_to_install(film, monkeypatch):
    monkeypatch.setattr(containers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"without PyAV.*pip install"), opened(film):
        pass


def test_a_process_ends_with_its_container(film):
    with opened(film) as container:
        process = container._process
        next(iter(container.frames([0, 1, 2])))
    assert process.poll() is not None
    assert isinstance(process, subprocess.Popen)


def test_what_nobody_wants_is_not_decoded_to_its_end(film):
    wanted = iter([True, True, False])
    with decoding.beside_passes(None, lambda: next(wanted)), opened(film) as container:
        frames = container.frames(list(range(20)))
        next(frames), next(frames)
        with pytest.raises(Exception, match="given up"):
            next(frames)


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b"\0\0\0\x20ftypisom", "mov"), (b"\x1aE\xdf\xa3" + bytes(20), "matroska"), (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"RIFF\0\0\0\0WAVEfmt ", None), (b"\xff\xf1\x50\x80", "aac"), (b"\xff\xfb\x90\x00", None),
        (b"fLaC", None), (b"ID3\x04", None), (b"OggS", "ogg"), (b"", None),
    ],
)  # fmt: skip
def test_containers_are_known_by_their_first_bytes(head, form):
    assert container_format(head) == form
