"""WAV files that are whole whatever ends them."""

import io
import wave

import numpy as np
import pytest

from coterie.errors import OutputError
from coterie.generation.wav_writer import WavWriter, wav_file

SAMPLES = np.array([0.0, 1.0, -1.0, 2.0, 0.5], dtype=np.float32)
VALUES = [0, 32767, -32767, 32767, 16384]


def read(file) -> tuple[int, list[int]]:
    with wave.open(file) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        return sound.getframerate(), np.frombuffer(sound.readframes(sound.getnframes()), "<i2").tolist()


def test_a_wav_file_has_the_samples_clipped(tmp_path) -> None:
    with wav_file(tmp_path / "a.wav", 24_000) as writer:
        writer.write(SAMPLES)
    assert read(str(tmp_path / "a.wav")) == (24_000, VALUES)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_written_before_an_error_is_a_whole_file(error, tmp_path) -> None:
    def write() -> None:
        with wav_file(tmp_path / "a.wav", 8_000) as writer:
            writer.write(SAMPLES[:2])
            writer.write(SAMPLES[2:])
            raise error

    with pytest.raises(error):
        write()
    assert read(str(tmp_path / "a.wav")) == (8_000, VALUES)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.wav").write_bytes(b"old")

    def full(self, samples):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WavWriter, "write", full)
    with pytest.raises(OutputError, match="No space left"), wav_file(tmp_path / "a.wav", 8_000) as writer:
        writer.write(SAMPLES)
    assert (tmp_path / "a.wav").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stream_is_played_while_it_comes() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    writer = WavWriter(pipe, 24_000)
    writer.write(SAMPLES)
    writer.end()
    import soundfile

    found, rate = soundfile.read(io.BytesIO(pipe.getvalue()), dtype="int16")
    assert (rate, found.tolist()) == (24_000, VALUES)
