import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from coterie.errors import InputError
from coterie.generation import media_features
from coterie.generation import sound as module
from coterie.generation.inputs import build_inputs
from coterie.generation.sound import read_sound

RATE = 16000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 4) / RATE)


def write(path: Path, samples: np.ndarray, *, width: int = 2, channels: int = 1, rate: int = RATE) -> Path:
    """Writes samples in [-1, 1), [frames] or [frames, channels], at the given width."""
    if width == 1:
        data = (np.round(samples * 127) + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4").reshape(-1)
        data = whole.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.mark.parametrize(("width", "step"), [(1, 2**-7), (2, 2**-15), (3, 2**-23), (4, 2**-24)])
def test_every_width(tmp_path, width, step):
    sound = read_sound(write(tmp_path / "a.wav", TONE, width=width), rate=RATE)
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, TONE, atol=2 * step)


def test_negative_24_bit_samples_keep_their_sign(tmp_path):
    sound = read_sound(write(tmp_path / "a.wav", np.array([-0.25, 0.25, -1.0]), width=3), rate=RATE)
    np.testing.assert_allclose(sound, [-0.25, 0.25, -1.0], atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_channels_are_averaged(tmp_path, width):
    stereo = np.stack([TONE, np.zeros_like(TONE)], axis=1)
    sound = read_sound(write(tmp_path / "a.wav", stereo, channels=2, width=width), rate=RATE)
    np.testing.assert_allclose(sound, TONE / 2, atol=2.0 ** (2 - 8 * width))


@pytest.mark.parametrize("own_rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, own_rate):
    times = np.arange(own_rate // 2) / own_rate
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * times), rate=own_rate)
    sound = read_sound(path, rate=RATE)
    assert abs(len(sound) - RATE // 2) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(sound)) / RATE)
    np.testing.assert_allclose(sound[800:-800], expected[800:-800], atol=2e-3)


def test_real_speech_is_read_as_its_bytes_say(data):
    sound = read_sound(data / "dog.wav", rate=RATE)
    with wave.open(str(data / "dog.wav")) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    np.testing.assert_array_equal(sound, raw.astype(np.float32) / 32768)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"ID3\x04" + bytes(100), b"hello"])
def test_not_a_sound(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.wav is not a sound that can be read.*ffmpeg"):
        read_sound(tmp_path / "a.wav", rate=RATE)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(InputError, match="There is no sound file"):
            read_sound(path, rate=RATE)


def test_empty(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        read_sound(write(tmp_path / "a.wav", np.zeros(0)), rate=RATE)


def test_too_long(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(RATE))
    assert len(read_sound(path, rate=RATE, max_seconds=1.0)) == RATE
    with pytest.raises(InputError, match=r"1\.0 s long; this model takes 0\.5 s"):
        read_sound(path, rate=RATE, max_seconds=0.5)


def test_truncated(tmp_path):
    path = write(tmp_path / "a.wav", TONE)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="truncated"):
        read_sound(path, rate=RATE)


def test_a_streamed_header_that_claims_gigabytes_allocates_nothing(tmp_path):
    path = write(tmp_path / "a.wav", TONE)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    np.testing.assert_allclose(read_sound(path, rate=RATE), TONE, atol=1e-4)


def chunk(name, data, *, length=None, padded=True):
    return name + struct.pack("<I", len(data) if length is None else length) + data + b"\0" * (padded and len(data) % 2)


def riff(*chunks, length=None, kind=b"RIFF"):
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if length is None else length) + body


def pcm(*, rate=RATE, channels=1, bits=16):
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", 1, channels, rate, (rate * frame) % 2**32, frame % 2**16, bits)


SIXTEEN = np.round(TONE * 32767).astype("<i2")
DATA = SIXTEEN.tobytes()
PLAIN = chunk(b"fmt ", pcm()), chunk(b"data", DATA)
SUBTYPE = bytes.fromhex("0100000000001000800000aa00389b71")
EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + SUBTYPE
SIZES = struct.pack("<QQQI", len(DATA) + 72, len(DATA), len(DATA) // 2, 0)


@pytest.mark.parametrize(
    "content",
    [
        riff(*PLAIN),
        riff(chunk(b"fmt ", EXTENSIBLE), chunk(b"data", DATA)),
        riff(chunk(b"fmt ", pcm() + bytes(2)), chunk(b"data", DATA)),
        riff(chunk(b"fmt ", pcm()), chunk(b"data", DATA, length=0), length=0),
        riff(chunk(b"fmt ", pcm()), chunk(b"data", DATA, length=0)),
        riff(chunk(b"fmt ", pcm()), chunk(b"data", DATA, length=0xFFFFFFFF), length=0xFFFFFFFF),
        riff(chunk(b"fmt ", pcm()), chunk(b"data", DATA, length=0x7FFFF000), length=0x7FFFF024),
        riff(chunk(b"JUNK", b"x" * 7), *PLAIN),
        riff(PLAIN[0], chunk(b"note", b"x" * 7, padded=False), PLAIN[1]),
        riff(chunk(b"bext", bytes(602)), *PLAIN, chunk(b"LIST", b"INFOabc")),
        riff(*PLAIN) + b"trailing rubbish",
        riff(chunk(b"ds64", SIZES), PLAIN[0], chunk(b"data", DATA, length=0xFFFFFFFF), length=0xFFFFFFFF, kind=b"RF64"),
    ],
    ids=["plain", "extensible", "fmt of 18", "no lengths", "no length", "all ones", "half of them", "odd", "unpadded",
         "bext", "rubbish", "rf64"],
)  # fmt: skip
def test_every_form_of_header_gives_the_samples(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    found = read_sound(path, rate=RATE)
    # What follows the samples of a file without lengths is taken for samples.
    np.testing.assert_array_equal(found[: len(SIXTEEN)], SIXTEEN.astype(np.float32) / 32768)
    assert len(found) == len(SIXTEEN)


def test_an_empty_sound_with_chunks_behind_it_stays_empty(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(riff(chunk(b"fmt ", pcm()), chunk(b"data", b""), chunk(b"LIST", b"INFO")))
    with pytest.raises(InputError, match="is empty"):
        read_sound(path, rate=RATE)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "FLOAT", 0), ("WAV", "DOUBLE", 0),
        ("WAVEX", "PCM_24", 1e-6), ("RF64", "PCM_32", 1e-6), ("W64", "PCM_16", 1e-4), ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.05), ("WAV", "ULAW", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)  # fmt: skip
def test_other_formats(tmp_path, kind, subtype, tolerance):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    path = tmp_path / "a.sound"
    soundfile.write(path, TONE.astype(np.float32), RATE, format=kind, subtype=subtype)
    found = read_sound(path, rate=RATE)
    assert len(found) == len(TONE)
    np.testing.assert_allclose(found, TONE, atol=tolerance + 1e-7)


@pytest.mark.parametrize("own_rate", [RATE, 44100, 192000])
@pytest.mark.parametrize("block", [1000, 1 << 18])
def test_blocks_make_no_difference(tmp_path, monkeypatch, own_rate, block):
    monkeypatch.setattr(module, "_BLOCK_VALUES", block)
    stereo = np.random.default_rng(0).uniform(-1, 1, (own_rate // 3, 2))
    path = write(tmp_path / "a.wav", stereo, channels=2, width=4, rate=own_rate)
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), "<i4").reshape(-1, 2)
    mono = (raw.astype(np.float32) / 2.0**31).mean(axis=1, dtype=np.float32)
    expected = mono if own_rate == RATE else soxr.resample(mono, own_rate, RATE, quality="HQ")
    np.testing.assert_array_equal(read_sound(path, rate=RATE), expected)


@pytest.mark.parametrize(
    "form",
    [
        pcm(rate=0),
        pcm(rate=2**31 - 1),
        pcm(rate=2**32 - 1),
        pcm(channels=0),
        pcm(channels=65535),
        pcm(bits=64),
        b"",
        bytes(16),
    ],
)
def test_hostile_headers_are_refused(tmp_path, form):
    path = tmp_path / "a.wav"
    path.write_bytes(riff(chunk(b"fmt ", form), chunk(b"data", DATA)))
    with pytest.raises(InputError, match=r"a\.wav (is not a sound|has 1 channels)") as caught:
        read_sound(path, rate=RATE)
    assert caught.value.path == path


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value):
    soundfile.write(tmp_path / "a.wav", np.array([0, value, 0], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(InputError, match="no numbers"):
        read_sound(tmp_path / "a.wav", rate=RATE)


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_other_formats_that_were_cut(tmp_path, kind):
    path = tmp_path / "a.sound"
    soundfile.write(path, np.tile(TONE, 20).astype(np.float32), RATE, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputError, match=r"a\.sound (is truncated|is not a sound)"):
        read_sound(path, rate=RATE)


def test_a_sound_that_takes_more_than_there_is_room_for_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(2 * RATE))
    assert len(read_sound(path, rate=RATE, room=16 * RATE)) == 2 * RATE
    with pytest.raises(InputError, match=r"2\.0 s long, which take .* leaves"):
        read_sound(path, rate=RATE, room=16 * RATE - 1)


def test_features_that_take_more_than_there_is_room_for_are_refused(data, processors, monkeypatch):
    monkeypatch.setattr(media_features, "decoding_room", lambda: 300_000)
    with pytest.raises(InputError, match=r"features of 2 sounds of up to .* samples take"):
        build_inputs(processors, "", audios=[data / "dog.wav", data / "go.wav"])


def test_a_fifo_and_a_device_are_no_sounds(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match="FIFO"):
        read_sound(tmp_path / "a.wav", rate=RATE)
    with pytest.raises(InputError, match="a device"):
        read_sound("/dev/zero", rate=RATE)
