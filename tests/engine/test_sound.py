import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from coterie.engine.sound import read_sound
from coterie.errors import InputError

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
    with pytest.raises(InputError, match=r"a\.wav is not a PCM WAV file.*ffmpeg"):
        read_sound(tmp_path / "a.wav", rate=RATE)


def test_compressed_samples_are_not_supported(tmp_path):
    header = (
        b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 7, 1, 8000, 8000, 1, 8) + b"data" + struct.pack("<I", 4) + bytes(4)
    )
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(header)) + header)
    with pytest.raises(InputError, match=r"unknown format.*ffmpeg"):
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
