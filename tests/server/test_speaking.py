"""How sound is written into answers."""

import base64
import io
import wave

import numpy as np
import pytest

from coterie.generation.speech import SPEECH_RATE
from coterie.generation.wav_writer import pcm16
from coterie.server.speaking import SoundPieces, head_of, written

SAMPLES = np.sin(np.arange(1001) / 7).astype(np.float32)


def test_a_whole_sound_is_a_file_or_its_samples() -> None:
    assert written(SAMPLES, "pcm16") == pcm16(SAMPLES)
    with wave.open(io.BytesIO(written(SAMPLES, "wav"))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SPEECH_RATE)
        assert file.readframes(file.getnframes()) == pcm16(SAMPLES)


@pytest.mark.parametrize("kind", ["pcm16", "wav"])
@pytest.mark.parametrize("sizes", [[1001], [1, 1, 2, 3, 994], [500, 0, 501], []])
def test_pieces_can_be_joined_before_they_are_decoded_or_after(kind, sizes) -> None:
    made, parts = SoundPieces(kind), np.split(SAMPLES[: sum(sizes)], np.cumsum(sizes[:-1]))
    pieces = [*(made.take(part) for part in parts), made.end()]
    expected = head_of(kind) + pcm16(SAMPLES[: sum(sizes)])
    assert b"".join(base64.b64decode(one, validate=True) for one in pieces) == expected
    assert base64.b64decode("".join(pieces), validate=True) == expected


def test_a_wav_stream_begins_with_a_header_that_leaves_its_length_open() -> None:
    assert head_of("pcm16") == b""
    head = head_of("wav")
    assert (head[:4], head[8:12], head[36:40], head[40:]) == (b"RIFF", b"WAVE", b"data", b"\xff" * 4)
